/*  A disk in memory behind the seam of files (pvt_files), for tests. Nothing that is written lasts before it
    is asked for: bytes not before the file is synced, names (creations, renames, removals) not before their
    directory is. disk_cut makes what a loss of power leaves: of all that was not asked for, any part, in any
    order and torn at sectors, as a seeded adversary likes it. What no file system does is not done: a rename
    takes the old name away only where it puts the new one, and a directory has one name.

    Every call can fail: the n-th of all or of a kind, once or from then on, or write fewer bytes. Files
    open under several processes of which each has a disk_user. Uses the public interface alone. */
#ifndef PVTUNE_DISK_H
#define PVTUNE_DISK_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __GNUC__
#define PVT_DISK_UNUSED __attribute__((unused))
#else
#define PVT_DISK_UNUSED
#endif

enum {
    DISK_INODES = 256,
    DISK_NAMES = 256,
    DISK_OPS = 512,
    DISK_OPENS = 64,
    DISK_SECTOR = 64,
    DISK_ROOT = 0
};

#define DISK_CALLS(X) X(OPEN) X(CLOSE) X(READ) X(INFO) X(WRITE) X(RENAME) X(REMOVE) X(MKDIR) X(RMDIR) X(SYNC) \
    X(LOCK) X(SHARE) X(LIST) X(MAP) X(PERMISSIONS)
typedef enum disk_call {
#define X(name) DISK_##name,
    DISK_CALLS(X)
#undef X
    DISK_KINDS,
    DISK_ANY = DISK_KINDS
} disk_call;

typedef struct disk_inode {
    bool used, directory;
    char *bytes;
    int64_t size, room, synced; /* bytes are only ever appended; the first `synced` last */
    uint64_t number;
    int opened, mapped;
    int locked; /* by which open file, from 1 */
    uint32_t permissions;
    bool lent;      /* the bytes are another disk's, which outlives this one */
    uint64_t hash;  /* of the bytes; 0: not known */
} disk_inode;
typedef struct disk_name {
    int dir, inode;
    char name[120];
} disk_name;
typedef struct disk_names {
    disk_name at[DISK_NAMES];
    int n;
} disk_names;
/* A change of a directory that does not last yet. */
typedef struct disk_op {
    bool add; /* else a removal */
    disk_name name;
    int64_t serial;
    int64_t with;  /* this removal only together with that addition (a rename's other half); 0: by itself */
    bool bound;    /* and the addition never without it: a directory's */
} disk_op;
typedef struct disk_open_file {
    int inode, numbers; /* numbers: how many stand for it */
    int64_t at;
} disk_open_file;

typedef struct disk {
    disk_inode inode[DISK_INODES];
    disk_names live, lasting;
    disk_op op[DISK_OPS];
    int n_ops;
    disk_open_file open[DISK_OPENS];
    int number[DISK_OPENS]; /* what a number stands for, from 1; 0: free */
    uint64_t numbers;
    int64_t serials;
    bool safe;       /* everything lasts at once: no cuts are wanted */
    bool no_map;     /* maps fail: what is read is read */
    bool full;       /* a table of this disk was full: the test is to be written anew */

    int64_t calls, of[DISK_KINDS]; /* so far */
    /* the fault */
    disk_call kind;
    int64_t at;   /* which call of that kind, from 0; −1: none */
    bool onwards; /* it and all behind it */
    int code;     /* errno; 0: a write of few bytes, with no error */
    int64_t fired;
    int64_t forget; /* the n-th sync, from 0, does nothing and says that it did; −1: none */
    int64_t forgotten;
    /* called before each call that changes what a cut would leave; and before each call at all */
    void (*before)(void *user, disk_call kind);
    void *before_user;
    void (*turn)(void *user, int process);
    void *turn_user;
} disk;
typedef struct disk_user {
    disk *d;
    int process;
} disk_user;

/* What a cut threw away. */
typedef struct disk_lost {
    int64_t bytes, names, torn;
} disk_lost;

static uint64_t disk_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static void disk_begin(disk *d)
{
    memset(d, 0, sizeof *d);
    d->inode[DISK_ROOT].used = d->inode[DISK_ROOT].directory = true;
    d->inode[DISK_ROOT].number = ++d->numbers;
    d->at = d->forget = -1;
}
static void disk_end(disk *d)
{
    for (int i = 0; i < DISK_INODES; i++)
        if (!d->inode[i].lent) free(d->inode[i].bytes);
    memset(d, 0, sizeof *d);
}

/* ---- names ---- */

static int disk_index(const disk_names *names, int dir, const char *name)
{
    for (int i = 0; i < names->n; i++)
        if (names->at[i].dir == dir && strcmp(names->at[i].name, name) == 0) return i;
    return -1;
}
static void disk_put(disk *d, disk_names *names, const disk_name *name)
{
    int i = disk_index(names, name->dir, name->name);
    if (i < 0 && names->n == DISK_NAMES) d->full = true;
    else names->at[i < 0 ? names->n++ : i] = *name;
}
static void disk_take(disk_names *names, const disk_name *name)
{
    int i = disk_index(names, name->dir, name->name);
    if (i >= 0) names->at[i] = names->at[--names->n];
}

/* The directory that the path's last part stands in, or −1; that part to `last`, "" for the root. */
static int disk_walk(const disk *d, const char *path, char last[120])
{
    int dir = DISK_ROOT;
    last[0] = 0;
    while (*path) {
        size_t n = strcspn(path, "/");
        if (n > 0 && !(n == 1 && path[0] == '.')) {
            if (last[0]) {
                int i = disk_index(&d->live, dir, last);
                if (i < 0) return errno = ENOENT, -1;
                dir = d->live.at[i].inode;
                if (!d->inode[dir].directory) return errno = ENOTDIR, -1;
            }
            if (n >= 120) return errno = ENAMETOOLONG, -1;
            memcpy(last, path, n), last[n] = 0;
        }
        path += n + (path[n] == '/');
    }
    return dir;
}
static int disk_find(const disk *d, const char *path)
{
    char last[120];
    int dir = disk_walk(d, path, last), i;
    if (dir < 0 || !last[0]) return dir;
    i = disk_index(&d->live, dir, last);
    if (i < 0) errno = ENOENT;
    return i < 0 ? -1 : d->live.at[i].inode;
}

/* What no name, number or map leads to any more. */
static void disk_collect(disk *d)
{
    bool keep[DISK_INODES] = {true};
    for (int i = 0; i < d->live.n; i++) keep[d->live.at[i].inode] = true;
    for (int i = 0; i < d->lasting.n; i++) keep[d->lasting.at[i].inode] = true;
    for (int i = 0; i < d->n_ops; i++) keep[d->op[i].name.inode] = true;
    for (int i = 1; i < DISK_INODES; i++) {
        disk_inode *f = &d->inode[i];
        if (!f->used || keep[i] || f->opened || f->mapped) continue;
        if (!f->lent) free(f->bytes);
        memset(f, 0, sizeof *f);
    }
}
static int disk_new(disk *d, bool directory)
{
    for (int turn = 0; turn < 2; turn++) {
        for (int i = 1; i < DISK_INODES; i++)
            if (!d->inode[i].used) {
                memset(&d->inode[i], 0, sizeof d->inode[i]);
                d->inode[i].used = true, d->inode[i].directory = directory, d->inode[i].number = ++d->numbers;
                return i;
            }
        disk_collect(d);
    }
    d->full = true;
    return errno = ENOSPC, -1;
}

/* A change of the directory, here and now, to last when that is synced. Returns its serial number. */
static int64_t disk_change(disk *d, bool add, int dir, const char *name, int inode, int64_t with, bool bound)
{
    disk_op op;
    memset(&op, 0, sizeof op);
    op.add = add, op.name.dir = dir, op.name.inode = inode, op.serial = ++d->serials, op.with = with,
    op.bound = bound;
    snprintf(op.name.name, sizeof op.name.name, "%s", name);
    if (add) disk_put(d, &d->live, &op.name);
    else disk_take(&d->live, &op.name);
    if (d->safe && add) disk_put(d, &d->lasting, &op.name);
    else if (d->safe) disk_take(&d->lasting, &op.name);
    else if (d->n_ops == DISK_OPS) d->full = true;
    else d->op[d->n_ops++] = op;
    return op.serial;
}

static void disk_apply(disk *d, disk_names *to, const disk_op *op)
{
    if (op->add) disk_put(d, to, &op->name);
    else disk_take(to, &op->name);
}
/* Of the first n changes those that are not of this name; a later one of it lasts. */
static int disk_drop(disk *d, int n, const disk_name *name)
{
    int kept = 0;
    for (int i = 0; i < n; i++)
        if (d->op[i].name.dir != name->dir || strcmp(d->op[i].name.name, name->name) != 0)
            d->op[kept++] = d->op[i];
    return kept;
}
/* All changes of one directory last; but that a file was moved out of it, not before that it was moved in
   elsewhere. */
static void disk_settle(disk *d, int dir)
{
    int kept = 0;
    for (int i = 0; i < d->n_ops; i++) {
        bool lasts = d->op[i].name.dir == dir;
        for (int j = 0; j < kept && d->op[i].with; j++) lasts = lasts && d->op[j].serial != d->op[i].with;
        if (lasts) disk_apply(d, &d->lasting, &d->op[i]), kept = disk_drop(d, kept, &d->op[i].name);
        else d->op[kept++] = d->op[i];
    }
    d->n_ops = kept;
}

/* ---- the calls ---- */

/* False, with errno: the call fails. */
static bool disk_call_begins(void *user, disk_call kind)
{
    disk_user *u = (disk_user *)user;
    disk *d = u->d;
    static const bool changes[DISK_KINDS] = {[DISK_OPEN] = true,   [DISK_WRITE] = true, [DISK_RENAME] = true,
                                             [DISK_REMOVE] = true, [DISK_MKDIR] = true, [DISK_RMDIR] = true,
                                             [DISK_SYNC] = true};
    if (d->turn) d->turn(d->turn_user, u->process);
    if (d->before && changes[kind]) d->before(d->before_user, kind);
    int64_t n = d->kind == DISK_ANY ? d->calls : d->of[kind];
    bool fails =
        d->at >= 0 && (d->kind == DISK_ANY || d->kind == kind) && (d->onwards ? n >= d->at : n == d->at);
    d->calls++, d->of[kind]++;
    if (!fails) return true;
    d->fired++;
    if (d->code) errno = d->code;
    return !d->code;
}
#define DISK_CALL(kind, failed)                            \
    disk *d = ((disk_user *)user)->d;                      \
    if (!disk_call_begins(user, kind)) return failed

static int disk_fail(int code)
{
    errno = code;
    return -1;
}
static disk_open_file *disk_file(disk *d, int number) { return &d->open[d->number[number] - 1]; }

static int disk_number(disk *d, int file) /* file from 1 */
{
    for (int i = 0; i < DISK_OPENS; i++)
        if (!d->number[i]) {
            d->number[i] = file, d->open[file - 1].numbers++;
            return i;
        }
    d->full = true;
    return disk_fail(EMFILE);
}
static int disk_open(void *user, const char *path, pvt_file_open how)
{
    DISK_CALL(DISK_OPEN, -1);
    char last[120];
    int dir = disk_walk(d, path, last), i = dir < 0 ? -1 : last[0] ? disk_find(d, path) : dir;
    if (dir < 0) return -1;
    if (how == PVT_OPEN_NEW || how == PVT_OPEN_NEW_PRIVATE) {
        if (i >= 0) return disk_fail(EEXIST);
        if ((i = disk_new(d, false)) < 0) return -1;
        d->inode[i].permissions = how == PVT_OPEN_NEW ? 0644 : 0600;
        disk_change(d, true, dir, last, i, 0, false);
    }
    if (i < 0) return disk_fail(ENOENT);
    for (int k = 0; k < DISK_OPENS; k++)
        if (!d->open[k].numbers) {
            d->open[k].inode = i, d->open[k].at = 0, d->inode[i].opened++;
            return disk_number(d, k + 1);
        }
    d->full = true;
    return disk_fail(EMFILE);
}
static int disk_close(void *user, int number) /* the number is free also when it fails */
{
    disk *d = ((disk_user *)user)->d;
    bool fails = !disk_call_begins(user, DISK_CLOSE);
    int code = errno;
    disk_open_file *f = disk_file(d, number);
    if (--f->numbers == 0) {
        d->inode[f->inode].opened--;
        if (d->inode[f->inode].locked == (int)(f - d->open) + 1) d->inode[f->inode].locked = 0;
    }
    d->number[number] = 0;
    return fails ? disk_fail(code) : 0;
}
static int64_t disk_read(void *user, int number, void *to, int64_t bytes)
{
    DISK_CALL(DISK_READ, -1);
    disk_open_file *f = disk_file(d, number);
    const disk_inode *from = &d->inode[f->inode];
    int64_t n = from->size - f->at < bytes ? from->size - f->at : bytes;
    if (from->directory) return disk_fail(EISDIR);
    if (n > 10000) n = 10000; /* seldom all at once */
    if (n > 0) memcpy(to, from->bytes + f->at, (size_t)n);
    f->at += n > 0 ? n : 0;
    return n > 0 ? n : 0;
}
static int disk_info(void *user, const char *path, int number, pvt_file_info *out)
{
    DISK_CALL(DISK_INFO, -1);
    int i = path ? disk_find(d, path) : disk_file(d, number)->inode;
    if (i < 0) return -1;
    memset(out, 0, sizeof *out);
    out->kind = d->inode[i].directory ? PVT_FILE_DIRECTORY : PVT_FILE_REGULAR;
    out->bytes = d->inode[i].size, out->number = d->inode[i].number, out->device = 1;
    out->modified = (int64_t)d->inode[i].number, out->permissions = d->inode[i].permissions;
    return 0;
}
static int64_t disk_write(void *user, int number, const void *from, int64_t bytes)
{
    DISK_CALL(DISK_WRITE, -1);
    disk_inode *to = &d->inode[disk_file(d, number)->inode];
    bool is_short = d->fired > 0 && !d->code && d->kind == DISK_WRITE;
    int64_t n = is_short && bytes > 7 ? 7 : bytes > 20000 ? 20000 : bytes;
    if (to->lent || to->size + n > to->room) {
        int64_t room = 2 * (to->size + n);
        char *more = (char *)malloc((size_t)room);
        if (!more) return disk_fail(ENOSPC);
        if (to->size) memcpy(more, to->bytes, (size_t)to->size);
        if (!to->lent) free(to->bytes);
        to->bytes = more, to->room = room, to->lent = false;
    }
    to->hash = 0;
    memcpy(to->bytes + to->size, from, (size_t)n);
    to->size += n;
    if (d->safe) to->synced = to->size;
    return n;
}
static int disk_rename(void *user, const char *from, const char *to)
{
    DISK_CALL(DISK_RENAME, -1);
    char old[120], new_[120];
    int from_dir = disk_walk(d, from, old), to_dir = from_dir < 0 ? -1 : disk_walk(d, to, new_);
    if (to_dir < 0) return -1;
    int i = disk_index(&d->live, from_dir, old), j = disk_index(&d->live, to_dir, new_);
    if (i < 0) return disk_fail(ENOENT);
    int moved = d->live.at[i].inode, there = j < 0 ? -1 : d->live.at[j].inode;
    bool directory = d->inode[moved].directory;
    if (there == moved) return 0;
    if (there >= 0 && d->inode[there].directory != directory) return disk_fail(directory ? ENOTDIR : EISDIR);
    if (there >= 0 && directory)
        for (int k = 0; k < d->live.n; k++)
            if (d->live.at[k].dir == there) return disk_fail(ENOTEMPTY);
    int64_t added = disk_change(d, true, to_dir, new_, moved, 0, directory);
    disk_change(d, false, from_dir, old, moved, added, directory);
    return 0;
}
static int disk_remove_any(disk *d, const char *path, bool directory)
{
    char last[120];
    int dir = disk_walk(d, path, last), i = dir < 0 ? -1 : disk_index(&d->live, dir, last);
    if (dir < 0) return -1;
    if (i < 0) return disk_fail(ENOENT);
    int inode = d->live.at[i].inode;
    if (d->inode[inode].directory != directory) return disk_fail(directory ? ENOTDIR : EISDIR);
    for (int k = 0; k < d->live.n && directory; k++)
        if (d->live.at[k].dir == inode) return disk_fail(ENOTEMPTY);
    disk_change(d, false, dir, last, inode, 0, false);
    return 0;
}
static int disk_remove(void *user, const char *path)
{
    DISK_CALL(DISK_REMOVE, -1);
    return disk_remove_any(d, path, false);
}
static int disk_remove_directory(void *user, const char *path)
{
    DISK_CALL(DISK_RMDIR, -1);
    return disk_remove_any(d, path, true);
}
static int disk_make_directory(void *user, const char *path)
{
    DISK_CALL(DISK_MKDIR, -1);
    char last[120];
    int dir = disk_walk(d, path, last), i;
    if (dir < 0) return -1;
    if (!last[0] || disk_index(&d->live, dir, last) >= 0) return disk_fail(EEXIST);
    if ((i = disk_new(d, true)) < 0) return -1;
    disk_change(d, true, dir, last, i, 0, false);
    return 0;
}
static int disk_sync(void *user, int number)
{
    DISK_CALL(DISK_SYNC, -1);
    int i = disk_file(d, number)->inode;
    if (d->forget >= 0 && d->of[DISK_SYNC] - 1 == d->forget) return d->forgotten++, 0;
    if (d->inode[i].directory) disk_settle(d, i);
    else d->inode[i].synced = d->inode[i].size;
    return 0;
}
static int disk_lock(void *user, int number)
{
    DISK_CALL(DISK_LOCK, -1);
    int file = d->number[number], *locked = &d->inode[d->open[file - 1].inode].locked;
    if (*locked && *locked != file) return disk_fail(EWOULDBLOCK);
    *locked = file;
    return 0;
}
static int disk_share(void *user, int number)
{
    DISK_CALL(DISK_SHARE, -1);
    return disk_number(d, d->number[number]);
}
static int disk_list(void *user, const char *path, void (*each)(void *arg, const char *name), void *arg)
{
    DISK_CALL(DISK_LIST, -1);
    static char names[DISK_NAMES][120]; /* for `each` may remove some */
    int i = disk_find(d, path), n = 0;
    if (i < 0) return -1;
    for (int k = 0; k < d->live.n; k++)
        if (d->live.at[k].dir == i) memcpy(names[n++], d->live.at[k].name, 120);
    for (int k = 0; k < n; k++) each(arg, names[k]);
    return 0;
}
/* A copy of exactly that size: sanitizers see one byte too many. */
static const void *disk_map(void *user, int number, int64_t bytes)
{
    DISK_CALL(DISK_MAP, NULL);
    const disk_inode *from = &d->inode[disk_file(d, number)->inode];
    void *copy = bytes == from->size && bytes > 0 && !d->no_map ? malloc((size_t)bytes) : NULL;
    if (copy) memcpy(copy, from->bytes, (size_t)bytes);
    return copy;
}
static void disk_unmap(void *user, const void *memory, int64_t bytes)
{
    (void)user, (void)bytes;
    free((void *)(uintptr_t)memory);
}
static int disk_set_permissions(void *user, int number, uint32_t permissions)
{
    DISK_CALL(DISK_PERMISSIONS, -1);
    d->inode[disk_file(d, number)->inode].permissions = permissions;
    return 0;
}

static pvt_files disk_files(disk_user *user)
{
    pvt_files f;
    memset(&f, 0, sizeof f);
    f.user = user;
    f.open = disk_open, f.close = disk_close, f.read = disk_read, f.info = disk_info, f.write = disk_write;
    f.rename = disk_rename, f.remove = disk_remove, f.sync = disk_sync, f.lock = disk_lock,
    f.share = disk_share;
    f.make_directory = disk_make_directory, f.remove_directory = disk_remove_directory, f.list = disk_list;
    f.map = disk_map, f.unmap = disk_unmap, f.set_permissions = disk_set_permissions;
    return f;
}

/* ---- a loss of power ---- */

/* What the adversary does to everything that does not last; behind the first ones it draws. */
enum { DISK_NOTHING_STAYS, DISK_ALL_STAYS, DISK_NAMES_STAY, DISK_BYTES_STAY, DISK_ZEROS_STAY, DISK_DRAWN };

static void disk_cut_names(const disk *from, uint64_t seed, disk *to, disk_lost *lost)
{
    bool kept[DISK_OPS];
    uint64_t odds = 1 + disk_mix(seed * 3) % 7; /* of eight */
    int until =
        seed % 2 ? from->n_ops : (int)(disk_mix(seed * 5) % (uint64_t)(from->n_ops + 1)); /* or a prefix */
    for (int i = 0; i < from->n_ops; i++) {
        const disk_op *op = &from->op[i];
        kept[i] = seed == DISK_ALL_STAYS || seed == DISK_NAMES_STAY || seed == DISK_ZEROS_STAY;
        if (seed >= DISK_DRAWN && seed % 2 == 0) kept[i] = i < until;
        if (seed >= DISK_DRAWN && seed % 2) kept[i] = disk_mix(seed * 1000 + (uint64_t)i) % 8 < odds;
        for (int j = 0; j < i && op->with; j++) /* one that is no longer in the list lasts */
            if (from->op[j].serial == op->with) kept[i] = kept[j] && (kept[i] || op->bound);
        if (kept[i]) disk_apply(to, &to->live, op);
        lost->names += !kept[i];
    }
}
static void disk_cut_bytes(const disk_inode *from, uint64_t seed, disk_inode *to, disk_lost *lost)
{
    int64_t open = from->size - from->synced;
    uint64_t draw = disk_mix(seed * 7 + from->number), odds = 1 + disk_mix(seed * 11) % 8;
    *to = *from;
    to->opened = to->mapped = to->locked = 0, to->bytes = NULL, to->room = from->size, to->lent = false;
    if (open > 0) to->hash = 0;
    if (seed == DISK_NOTHING_STAYS || seed == DISK_NAMES_STAY) to->size = from->synced;
    if (seed >= DISK_DRAWN && seed % 3 == 0) to->size = from->synced + (int64_t)(draw % (uint64_t)(open + 1));
    if (to->size > 0) {
        to->bytes = (char *)malloc((size_t)to->size);
        memcpy(to->bytes, from->bytes, (size_t)to->size);
    }
    for (int64_t at = from->synced; at < to->size;) { /* the size may last before the bytes do */
        int64_t end =
            (at / DISK_SECTOR + 1) * DISK_SECTOR < to->size ? (at / DISK_SECTOR + 1) * DISK_SECTOR : to->size;
        bool stays = seed == DISK_ALL_STAYS || seed == DISK_BYTES_STAY;
        if (seed >= DISK_DRAWN) stays = disk_mix(draw + (uint64_t)at) % 8 < odds;
        if (!stays) memset(to->bytes + at, 0, (size_t)(end - at)), lost->torn++;
        at = end;
    }
    lost->bytes += from->size - to->size;
    to->synced = to->size;
}
/* Names in directories that have none themselves are no more. */
static void disk_prune(disk_names *names)
{
    for (int i = 0; i < names->n; i++) {
        bool named = names->at[i].dir == DISK_ROOT;
        for (int k = 0; k < names->n && !named; k++) named = names->at[k].inode == names->at[i].dir;
        if (!named) names->at[i] = names->at[--names->n], i = -1; /* and what was in it, in turn */
    }
}
/* `to`, which is empty, becomes what is there when power is back. */
static void disk_cut(const disk *from, uint64_t seed, disk *to, disk_lost *lost)
{
    disk_begin(to);
    to->live = from->lasting, to->numbers = from->numbers, to->full = from->full;
    disk_cut_names(from, seed, to, lost);
    disk_prune(&to->live);
    to->lasting = to->live;
    for (int i = 0; i < DISK_INODES; i++)
        if (from->inode[i].used) disk_cut_bytes(&from->inode[i], seed, &to->inode[i], lost);
    disk_collect(to);
}

/* `to`, which is empty, becomes a copy, of which only what is written is its own; nothing is open. */
static PVT_DISK_UNUSED void disk_lend(const disk *from, disk *to)
{
    *to = *from;
    for (int i = 0; i < DISK_INODES; i++) to->inode[i].lent = true;
}

/* ---- looking at it ---- */

static PVT_DISK_UNUSED void disk_print(const disk *d, int dir, int depth)
{
    for (int i = 0; i < d->live.n; i++) {
        const disk_name *n = &d->live.at[i];
        if (n->dir != dir) continue;
        printf("%*s%s (%lld bytes)\n", 4 + 2 * depth, "", n->name, (long long)d->inode[n->inode].size);
        if (d->inode[n->inode].directory) disk_print(d, n->inode, depth + 1);
    }
}

static uint64_t disk_hash(uint64_t h, const void *data, int64_t n)
{
    const char *p = (const char *)data;
    uint64_t word;
    for (; n >= 8; n -= 8, p += 8) memcpy(&word, p, 8), h = disk_mix(h ^ word);
    word = 0;
    if (n > 0) memcpy(&word, p, (size_t)n);
    return disk_mix(h ^ word ^ (uint64_t)n << 56);
}
/* What temporary files are called, and the folders that are being written. */
static bool disk_is_temporary(const char *name)
{
    return name[0] == '.' && strstr(name, ".pvtune-") && strstr(name, ".tmp");
}

/* Of all files below a directory, with their names: an order of names changes nothing. `all`: also of
   temporary ones and of directories by themselves. */
static uint64_t disk_view(disk *d, int dir, bool all);
static uint64_t disk_view_of(disk *d, int name, bool all) /* one name's part */
{
    const disk_name *n = &d->live.at[name];
    disk_inode *f = &d->inode[n->inode];
    if (!all && disk_is_temporary(n->name)) return 0;
    uint64_t h = disk_hash(1, n->name, (int64_t)strlen(n->name));
    if (!f->directory && !f->hash) f->hash = disk_hash(1, f->bytes, f->size);
    uint64_t inside = f->directory ? disk_view(d, n->inode, all) : f->hash;
    return !f->directory || all || inside ? disk_mix(h * 3 + inside) : 0;
}
static uint64_t disk_view(disk *d, int dir, bool all)
{
    uint64_t sum = 0;
    for (int i = 0; i < d->live.n; i++)
        if (d->live.at[i].dir == dir) sum += disk_view_of(d, i, all);
    return sum;
}

#endif
