/*  What the program asks of POSIX, where Windows has it otherwise: names of files and arguments are UTF-8 here
    and wide there, a file's identity is asked for by its handle, text streams are not rewritten. After the system's
    headers and before the functions that are renamed below are called. */
#ifndef ON_WINDOWS_H
#define ON_WINDOWS_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <io.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <wchar.h>
#include <windows.h>
#include <shellapi.h>

enum { ON_WINDOWS_PATH = 4096 };

/* The path in wide characters; NULL with errno set. */
static const wchar_t *on_windows_path(const char *path, wchar_t wide[ON_WINDOWS_PATH])
{
    if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, ON_WINDOWS_PATH) > 0) return wide;
    errno = ENOENT;
    return NULL;
}

static inline FILE *on_windows_fopen(const char *path, const char *mode)
{
    wchar_t wide[ON_WINDOWS_PATH], how[8];
    if (!on_windows_path(path, wide) || !MultiByteToWideChar(CP_UTF8, 0, mode, -1, how, 8)) return NULL;
    return _wfopen(wide, how);
}
/* To be executed is nothing that a file there can be refused. */
static inline int on_windows_access(const char *path, int mode)
{
    wchar_t wide[ON_WINDOWS_PATH];
    return on_windows_path(path, wide) ? _waccess(wide, mode & (R_OK | W_OK)) : -1;
}
static inline int on_windows_mkdir(const char *path, int mode)
{
    wchar_t wide[ON_WINDOWS_PATH];
    (void)mode;
    return on_windows_path(path, wide) ? _wmkdir(wide) : -1;
}
static inline int on_windows_remove(const char *path)
{
    wchar_t wide[ON_WINDOWS_PATH];
    return on_windows_path(path, wide) ? _wremove(wide) : -1;
}

/* What stands there, and which it is: the C library says 0 for the number of every file. */
struct on_windows_stat {
    int st_mode;
    int64_t st_size;
    uint64_t st_dev, st_ino;
};
static inline int on_windows_stat(const char *path, struct on_windows_stat *out)
{
    wchar_t wide[ON_WINDOWS_PATH];
    BY_HANDLE_FILE_INFORMATION info;
    memset(out, 0, sizeof *out), memset(&info, 0, sizeof info);
    if (!on_windows_path(path, wide)) return -1;
    HANDLE handle = CreateFileW(wide, FILE_READ_ATTRIBUTES, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE,
                                NULL, OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS, NULL);
    errno = GetLastError() == ERROR_ACCESS_DENIED ? EACCES : ENOENT;
    if (handle == INVALID_HANDLE_VALUE) return -1;
    bool good = GetFileType(handle) == FILE_TYPE_DISK && GetFileInformationByHandle(handle, &info);
    CloseHandle(handle);
    out->st_mode = !good ? S_IFCHR : info.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY ? S_IFDIR : S_IFREG;
    out->st_size = (int64_t)((uint64_t)info.nFileSizeHigh << 32 | info.nFileSizeLow);
    out->st_dev = info.dwVolumeSerialNumber;
    out->st_ino = (uint64_t)info.nFileIndexHigh << 32 | info.nFileIndexLow;
    return 0;
}

/* Names in a directory, as UTF-8. */
struct on_windows_dirent {
    char d_name[4 * 260];
};
typedef struct on_windows_dir {
    _WDIR *wide;
    struct on_windows_dirent entry;
} on_windows_dir;
static inline on_windows_dir *on_windows_opendir(const char *path)
{
    wchar_t wide[ON_WINDOWS_PATH];
    on_windows_dir *d = on_windows_path(path, wide) ? (on_windows_dir *)calloc(1, sizeof *d) : NULL;
    if (d && (d->wide = _wopendir(wide)) != NULL) return d;
    free(d);
    return NULL;
}
static inline struct on_windows_dirent *on_windows_readdir(on_windows_dir *d)
{
    struct _wdirent *next = _wreaddir(d->wide);
    char *name = d->entry.d_name;
    if (!next) return NULL;
    if (!WideCharToMultiByte(CP_UTF8, 0, next->d_name, -1, name, (int)sizeof d->entry.d_name, NULL, NULL)) *name = 0;
    return &d->entry;
}
static inline int on_windows_closedir(on_windows_dir *d)
{
    int status = _wclosedir(d->wide);
    free(d);
    return status;
}

/* The arguments in UTF-8, which the program keeps to its end; streams that are not rewritten. False: no memory. */
static inline bool on_windows_begin(int *argc, char ***argv)
{
    int n = 0;
    wchar_t **wide = CommandLineToArgvW(GetCommandLineW(), &n);
    char **out = (char **)calloc((size_t)n + 1, sizeof *out);
    if (!wide || !out) return false;
    for (int i = 0; i < n; i++) {
        int bytes = WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, NULL, 0, NULL, NULL);
        out[i] = (char *)calloc(1, (size_t)bytes + 1);
        if (!out[i]) return false;
        WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, out[i], bytes, NULL, NULL);
    }
    LocalFree(wide);
    SetConsoleOutputCP(CP_UTF8);
    _setmode(0, _O_BINARY), _setmode(1, _O_BINARY);
    *argc = n, *argv = out;
    return true;
}

/* open_memstream's part: what is drawn goes through a file that is gone when it is closed. */
static inline bool on_windows_text(bool (*draw)(const void *what, FILE *f), const void *what, char **text, size_t *bytes)
{
    wchar_t dir[MAX_PATH + 1], path[MAX_PATH + 1];
    if (!GetTempPathW(MAX_PATH, dir) || !GetTempFileNameW(dir, L"pvt", 0, path)) return false;
    FILE *f = _wfopen(path, L"w+bD");
    if (!f) return false;
    bool good = draw(what, f) && fflush(f) == 0;
    long end = ftell(f);
    *text = good && end >= 0 ? (char *)calloc(1, (size_t)end + 1) : NULL;
    *bytes = *text ? (size_t)end : 0;
    rewind(f);
    good = *text && fread(*text, 1, *bytes, f) == *bytes;
    fclose(f);
    return good;
}

/* Of the machine's memory. */
enum { _SC_PHYS_PAGES, _SC_PAGESIZE };
static inline long sysconf(int what)
{
    MEMORYSTATUSEX memory;
    memory.dwLength = sizeof memory;
    if (what == _SC_PAGESIZE) return 65536;
    return GlobalMemoryStatusEx(&memory) ? (long)(memory.ullTotalPhys / 65536) : 0;
}

#undef small /* types there */
#undef near
#define write(file, from, bytes) _write(file, from, (unsigned)(bytes))
#undef stat
#define stat on_windows_stat
#define fopen on_windows_fopen
#define access on_windows_access
#define mkdir on_windows_mkdir
#define remove on_windows_remove
#define DIR on_windows_dir
#define dirent on_windows_dirent
#define opendir on_windows_opendir
#define readdir on_windows_readdir
#define closedir on_windows_closedir

#endif
