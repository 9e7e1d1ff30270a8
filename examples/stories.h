/*  Little stories from a seeded grammar: the text that `pvtune demo` learns from.

    A rule is a name and its alternatives, separated by '|'. Expanding "<name>" picks one
    alternative and expands what it holds. Some names are fixed per story (the hero, the friend,
    their pronouns, what was lost and where, a few numbers that add up), so that a reader who
    remembers the beginning can foresee the end: that is what a model loses first when its
    weights become coarse. The same seed gives the same text on every machine. */
#ifndef STORIES_H
#define STORIES_H

#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct story_rule {
    const char *name, *alternatives;
} story_rule;

static const story_rule story_rules[] = {
    {"story", "<opening> <fact> <setup>\n<plot>\n<ending>\n\n|<opening> <fact> <weather>\n<plot>\n<ending>\n\n|"
              "<weather> <opening> <fact> <trait>\n<plot>\n<plot2> <ending>\n\n"},
    {"fact", "<he> came from <Town>, on the river <River>, where they make <craft>.|in <Town> they make <craft>, and the "
             "river <River> runs <compassT>.|this was in <Town>, the town of <Ruler> the <rkind>.|the town was <Town>, where "
             "<Ruler> the <rkind> rules over the river <River>."},
    {"plot", "<lost>|<lost>|<counting>|<counting>|<journey>|<journey>|<secret>|<trade>|<trade>"},
    {"plot2", "Then something else happened. <visitor>|That was not all. <visitor>|The next day <visitor>"},
    {"opening", "once upon a time there was @<look> <kind> named <Hero>.|<Hero> was @<look> <kind> who lived <place>.|"
                "in @<size> house <place> lived a <kind> called <Hero>.|long ago, <place>, a <look> <kind> named "
                "<Hero> lived with <his> <relative>.|there was once a <kind>, and <his> name was <Hero>.|"
                "<Hero> the <kind> had lived <place> for <n> years."},
    {"trait", "<he> had <color> <feature> and liked <food> more than anything.|<he> was good at <skill>, but not at "
              "<skill>.|every <day> <he> went <place2> to <task>.|people said that <Hero> was too <mood> for "
              "a <kind>.|<he> was never without <his> <color> <thing>.|<his> best friend was <Friend>, @<look> <fkind>."},
    {"setup", "one <time>, <Hero> wanted to <task>.|on <day> <his> <relative> asked <him> to <task>.|one <time> "
              "<he> woke up feeling <mood>.|<his> friend <Friend> lived <place3>, <n> steps away.|"
              "that <time> there was @<adj> <food> on the table, and nobody knew why."},
    {"weather", "it was a <climate> <time>.|the <time> was <climate>, and the wind blew from the <compass>.|"
                "it had been <climate> for <n> days.|the moon was <color> and the night was <climate>."},
    {"lost", "<Hero> had lost <his> <color> <thing>. <he> looked <spot>, but it was not there. <he> looked <spot>, and "
             "there was only @<adj> <junk>. <ask> \"^I saw it <where>,\" said <Friend>. <Hero> ran <manner> and looked "
             "<where>. there it was, the <color> <thing>! <thanks>|"
             "\"^where is my <color> <thing>?\" asked <Hero>. \"^it was <spot> this <time>.\" <Friend> thought for a "
             "while. <fhe> had seen @<animal> carry it away. they followed the <animal> <place2>. <where>, under @<adj> "
             "<junk>, lay the <color> <thing>. <thanks>"},
    {"counting", "<Hero> had <n> <things> and <Friend> had <m>. they put them together and counted: there were <sum>. "
                 "<comment> then they gave <k> to the <animal>, and <left> were left. \"^<left> is enough,\" said "
                 "<Friend>.|"
                 "at the market <Hero> bought <n> <things> for <fhis> friend and <m> for <himself>. \"^how many is "
                 "that?\" asked <Friend>. \"^that is <sum>,\" said <Hero>. on the way home <he> lost <k> of them "
                 "<spot>. when <he> came home <he> had only <left>. <comment>|"
                 "there were <n> <things> <spot>. @<adj> <animal> came and brought <m> more. now there were <sum>. "
                 "<Hero> took <k> of the <sum> <things> to <Friend>. so <left> stayed where they were."},
    {"journey", "<Hero> and <Friend> set out <place2> to find the <color> <treasure>. they walked <n> days. on the "
                "first day they met @<animal>, who was <mood>. \"^go <compass>,\" said the <animal>. on the second day "
                "it was <climate>, and they slept <spot>. at last they stood <place>. <guard> <reward>|"
                "the way <place2> was long, and <Hero> was <mood>. <he> carried <his> <thing> and some <food>. @<adj> "
                "<animal> asked for the <food>. <Hero> gave <half> of it to the <animal>. \"^because you were kind,\" "
                "said the <animal>, \"^I will show you the <color> <treasure>.\" <reward>"},
    {"guard", "@<adj> <animal> stood before the door. \"^what has <n> legs and cannot walk?\" it asked. \"^a <junk>,\" "
              "said <Friend>, and the door opened.|nobody was there but @<animal>, asleep <spot>.|the door was shut, but "
              "<Hero> had <his> <color> <thing> and opened it with that."},
    {"reward", "inside stood the <color> <treasure>, and it was even more <adj> than they had thought.|the <color> "
               "<treasure> was <size>, but it was real. <comment>|and there, <where>, was the <color> <treasure>."},
    {"secret", "<Hero> had a secret: <he> was afraid of <fear>. <he> had never told anyone, not even <his> <relative>. "
               "one <time> <Friend> asked, \"^why do you never go <place2>?\" <Hero> looked <mood>. \"^because of <fear>,\" "
               "<he> said <manner>. <Friend> did not laugh. \"^I am afraid of <fear2>,\" <fhe> said. after that <Hero> was "
               "less afraid of <fear>, and <Friend> was less afraid of <fear2>."},
    {"trade", "<Hero> wanted the <color> <thing> that <Friend> had. \"^I will give you <n> <things> for it,\" said <he>. "
              "\"^<m> more,\" said <Friend>. so <Hero> gave <fhim> <sum> <things>, and <Friend> gave <him> the <color> "
              "<thing>. <comment>|"
              "<Friend> the <fkind> sold <things> <place3>. one cost <k> coins. <Hero> had <sum> coins in <his> pocket, but "
              "<n> of them were <adj>. so only <m> were good. <he> bought one and went home <manner>."},
    {"visitor", "@<adj> <animal> knocked at the door and asked for <food>. <Hero> had only <k> pieces left, but <he> gave "
                "the guest one.|<his> <relative> came from far away and brought <n> <things>. <Friend> got <k> of them.|the "
                "<animal> who lived <place3> came back and wanted to <task> with <Hero>.|it was <climate>, and "
                "<Friend> had to stay until <day>."},
    {"ask", "<he> asked <Friend>, who was busy with <food>.|<Friend> came by with <n> <things>. \"^have you seen my "
            "<thing>?\" asked <Hero>.|\"^my <thing> is gone,\" <he> told <Friend> <manner>."},
    {"thanks", "\"^thank you, <Friend>,\" said <Hero>.|<Hero> was so <mood> that <he> gave <Friend> <k> <things>.|"
               "\"^next time I will look <where> first,\" said <Hero>.|<Friend> smiled, for <fhe> had known it all along."},
    {"comment", "<Hero> was <mood> about it.|\"^that is <adj>,\" said <Friend>.|they both laughed.|nobody had expected "
                "that.|<Friend> said nothing, but <fhe> looked <mood>."},
    {"ending", "in the evening <Hero> and <Friend> ate <food> together. the end.|and from that day on, <Hero> was never "
               "<mood> again.|<Hero> put the <thing> <where> and went to sleep.|\"^what @<adj> day,\" said <Hero>, and "
               "<Friend> agreed.|so <Hero> learned that even a <kind> can <task>.|if you go <place>, you may still see "
               "<Hero> and <Friend> there."},
    {"look", "old|young|clever|quiet|brave|lazy|cheerful|tiny|tall|hungry|lonely|proud|gentle|curious|sleepy|stubborn"},
    {"adj", "strange|heavy|broken|shiny|dusty|warm|cold|lovely|ugly|useful|empty|golden|noisy|soft|ancient|unusual|"
            "enormous|crooked|sticky|invisible|wonderful|terrible|ordinary"},
    {"mood", "happy|sad|angry|surprised|tired|nervous|jealous|calm|worried|excited|ashamed|thankful|bored|hopeful"},
    {"size", "small|big|narrow|round|wooden|white|crooked|huge"},
    {"feature", "eyes|hair|shoes|ears|gloves|boots|hands|trousers"},
    {"skill", "singing|swimming|counting|cooking|climbing trees|telling jokes|whistling|fishing|reading maps|knitting|"
              "chess|dancing|drawing horses"},
    {"task", "pick apples|mend the roof|feed the goats|draw a map|bake bread|build a boat|catch a fish|sing a song|fly a "
             "kite|clean the windows|write a letter|carry water|plant a tree|learn to swim|sell eggs|repair the clock|"
             "dig a well|visit the miller"},
    {"time", "morning|evening|afternoon|night|summer|winter day|spring morning|autumn evening"},
    {"day", "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"},
    {"climate", "cold|rainy|foggy|windy|sunny|snowy|stormy|hot|clear|cloudy"},
    {"compass", "north|south|east|west"},
    {"manner", "slowly|quickly|quietly|at once|without a word|with a smile|as fast as <he> could|carefully|proudly"},
    {"half", "half|a third|most|a little|all"},
    {"fears", "the dark|deep water|thunder|spiders|tall ladders|big dogs|being alone|the old mill|cats|mirrors|loud "
              "music|owls"},
    {"relative", "mother|father|sister|brother|grandmother|uncle|aunt|cousin|grandfather"},
    {"spots", "under the bed|behind the door|in the kitchen|on the roof|beside the well|in the barn|between two stones|"
              "under a blanket|on the top shelf|near the gate|in a basket|behind the stove|inside an old boot|at the foot "
              "of the stairs|in the tall grass|below the window"},
    {"spot", "<spots>"},
    {"places", "by the sea|in a quiet valley|near the castle|at the edge of the forest|on a high mountain|in the middle of "
               "the town|beside a frozen lake|in the old mill|on a small island|behind the <compass> gate|under the stone "
               "bridge|at the end of the road|in the garden of the king|next to the <animals> market"},
    {"ways", "to the river|to the village|over the hills|into the woods|across the bridge|to the harbour|down the valley|"
             "up the mountain|to the old tower|through the fields|to the school|past the windmill|into the cave"},
    {"kinds", "child|cook|fox|rabbit|baker|sailor|farmer|robot|wizard|poet|teacher|bear|mouse|shepherd|giant|painter|"
              "tailor|soldier|duck|dragon|doctor|fisherman|weaver|clockmaker"},
    {"animals", "owl|cat|dog|horse|goat|frog|crow|snail|wolf|hedgehog|goose|donkey|elephant|turtle|ant|squirrel|pony|"
                "parrot|otter|eagle"},
    {"colors", "red|blue|green|yellow|purple|black|white|silver|orange|brown|pink|grey"},
    {"objects", "hat|key|lamp|book|ring|kite|umbrella|drum|coat|flute|spoon|lantern|scarf|bell|mirror|basket|compass|"
                "whistle|ladder|violin|button|map|needle|clock"},
    {"pluralss", "apples|pears|coins|buttons|eggs|stones|feathers|nuts|candles|marbles|shells|carrots|stamps|keys|plums|"
                 "flowers|tickets|pencils|onions|beads"},
    {"junk", "bucket|broom|chair|table|barrel|stone|wheel|pile of leaves|chest|sack|rope|pot"},
    {"treasures", "crown|stone|flower|sword|bird|star|feather|cup|book of songs|tree|pearl|door"},
    {"foods", "soup|bread|cheese|honey|cake|porridge|cherries|fish|pancakes|pie|mushrooms|beans|butter|milk|jam"},
    {"boys", "Tom|Ben|Max|Leo|Sam|Oscar|Hugo|Finn|Jack|Peter|Omar|Ivan|Carlos|Theo|Nils|Adam|Felix|Victor"},
    {"girls", "Lily|Anna|Mia|Emma|Sara|Rosa|Clara|Nina|Lucy|Ida|Olga|Maya|Zoe|Julia|Hanna|Greta|Eva|Paula"},
    {"syllables", "ba|do|ki|lu|mar|ne|o|pel|ri|sha|ta|u|vin|wo|ya|zim|tor|en|la|qui"},
};
enum { STORY_RULES = (int)(sizeof story_rules / sizeof *story_rules) };

typedef struct stories {
    uint64_t state;
    char *text;
    int64_t length, capacity;
    char fixed[40][2][48]; /* name and text of what holds for one story */
    int n_fixed;
} stories;

static uint64_t story_random(stories *s, uint64_t n)
{
    uint64_t z = s->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return ((z ^ (z >> 31)) >> 11) % n;
}

static void story_put(stories *s, const char *text, int64_t n)
{
    if (s->length + n + 1 > s->capacity) {
        int64_t capacity = 2 * s->capacity + n + 4096;
        char *bigger = (char *)realloc(s->text, (size_t)capacity);
        if (!bigger) return; /* the text ends early; stories_write sees it */
        s->text = bigger, s->capacity = capacity;
    }
    memcpy(s->text + s->length, text, (size_t)n);
    s->length += n;
    s->text[s->length] = 0;
}

static void story_expand(stories *s, const char *text, int64_t n);

static void story_rule_expand(stories *s, const char *name, int64_t n)
{
    for (int i = 0; i < s->n_fixed; i++)
        if ((int64_t)strlen(s->fixed[i][0]) == n && memcmp(s->fixed[i][0], name, (size_t)n) == 0) {
            story_expand(s, s->fixed[i][1], (int64_t)strlen(s->fixed[i][1]));
            return;
        }
    for (int i = 0; i < STORY_RULES; i++) {
        const char *at = story_rules[i].alternatives;
        uint64_t count = 1;
        if ((int64_t)strlen(story_rules[i].name) != n || memcmp(story_rules[i].name, name, (size_t)n) != 0) continue;
        for (const char *end = at; *end; end++) count += *end == '|';
        for (uint64_t pick = story_random(s, count); pick > 0; pick--) at = strchr(at, '|') + 1;
        const char *end = strchr(at, '|');
        story_expand(s, at, end ? end - at : (int64_t)strlen(at));
        return;
    }
    story_put(s, "?", 1); /* a rule that does not exist: visible in the text */
}

static void story_expand(stories *s, const char *text, int64_t n)
{
    int64_t plain = 0;
    for (int64_t i = 0; i < n; i++) {
        if (text[i] != '<') continue;
        const char *end = strchr(text + i, '>');
        story_put(s, text + plain, i - plain);
        story_rule_expand(s, text + i + 1, end - (text + i + 1));
        i = end - text;
        plain = i + 1;
    }
    story_put(s, text + plain, n - plain);
}

static void story_fix(stories *s, const char *name, const char *text)
{
    int i = s->n_fixed++;
    strncat(strcpy(s->fixed[i][0], ""), name, 47);
    strncat(strcpy(s->fixed[i][1], ""), text, 47);
}

/* Fixes `name` to one expansion of `rule`. */
static void story_draw(stories *s, const char *name, const char *rule)
{
    int64_t start = s->length;
    char word[48] = "";
    story_rule_expand(s, rule, (int64_t)strlen(rule));
    if (s->text) strncat(word, s->text + start, sizeof word - 1);
    s->length = start;
    story_fix(s, name, word);
}

/* A word of two or three syllables that belongs to the number: every text has the same ones. */
static void story_word(uint64_t number, char out[48])
{
    stories s;
    memset(&s, 0, sizeof s);
    s.state = number * 0x9e3779b97f4a7c15u;
    for (uint64_t parts = 2 + story_random(&s, 2); parts > 0; parts--) story_rule_expand(&s, "syllables", 9);
    strcpy(out, "");
    if (s.text) strncat(out, s.text, 40);
    out[0] = (char)toupper((unsigned char)out[0]);
    free(s.text);
}

/* A name from a list or an invented one; either belongs to a girl or to a boy, always the same. */
static void story_person(stories *s, const char *const names[5])
{
    uint64_t number = story_random(s, 160);
    bool girl = number % 2 == 0;
    char word[48];
    if (number < 80) {
        story_word(1000 + number, word);
        story_fix(s, names[0], word);
    } else
        story_draw(s, names[0], girl ? "girls" : "boys");
    story_fix(s, names[1], girl ? "she" : "he");
    story_fix(s, names[2], girl ? "her" : "his");
    story_fix(s, names[3], girl ? "her" : "him");
    story_fix(s, names[4], girl ? "herself" : "himself");
}

/* A town has its river, its ruler and its craft: facts to be known by heart, for no story tells
   them twice. */
static void story_town(stories *s)
{
    uint64_t town = story_random(s, 48), state = s->state;
    char word[48];
    story_word(2000 + town, word), story_fix(s, "Town", word);
    story_word(3000 + town % 19, word), story_fix(s, "River", word);
    story_word(4000 + town, word), story_fix(s, "Ruler", word);
    s->state = 77 * town;
    story_draw(s, "rkind", "kinds"), story_draw(s, "craft", "pluralss"), story_draw(s, "compassT", "compass");
    s->state = state;
}

static void story_numbers(stories *s)
{
    static const char *const words[] = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
        "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"};
    int n = 2 + (int)story_random(s, 8), m = 2 + (int)story_random(s, 8);
    int k = 2 + (int)story_random(s, (uint64_t)(n + m - 3));
    story_fix(s, "n", words[n]), story_fix(s, "m", words[m]), story_fix(s, "sum", words[n + m]);
    story_fix(s, "k", words[k]), story_fix(s, "left", words[n + m - k]);
}

/* Sentence starts and '^' become capitals, "@" becomes "a " or "an " by the next letter's sound. */
static void story_polish(stories *s, int64_t from)
{
    int64_t out = from;
    bool capital = true;
    for (int64_t i = from; i < s->length; i++) {
        char c = s->text[i], next = i + 1 < s->length ? s->text[i + 1] : (char)0;
        if (c == '^') {
            capital = true;
            continue;
        }
        if (c == '@') {
            bool an = strchr("aeio", next) || (next == 'u' && strncmp(s->text + i + 1, "use", 3) != 0);
            int64_t more = an ? 2 : 1;
            memmove(s->text + i + 1 + more, s->text + i + 1, (size_t)(s->length - i)); /* with the zero */
            s->length += more;
            memcpy(s->text + i, an ? "an " : "a ", (size_t)(1 + more));
            i--; /* and read it again */
            continue;
        }
        if (capital && isalpha((unsigned char)c)) c = (char)toupper((unsigned char)c), capital = false;
        if (c == '\n' || ((c == '.' || c == '!' || c == '?') && next == ' ')) capital = true;
        if (c == '"' && next == ' ' && out > from && s->text[out - 1] == '.') capital = true;
        s->text[out++] = c;
    }
    s->length = out;
    s->text[out] = 0;
}

/* At least `bytes` bytes of whole stories, zero-terminated; free() it. NULL: no memory. */
static char *stories_write(uint64_t seed, int64_t bytes, int64_t *length)
{
    static const char *const hero[] = {"Hero", "he", "his", "him", "himself"};
    static const char *const friend_[] = {"Friend", "fhe", "fhis", "fhim", "fself"};
    stories s;
    memset(&s, 0, sizeof s);
    s.state = seed * 0xd1342543de82ef95u + 1;
    s.capacity = bytes + 16384;
    s.text = (char *)malloc((size_t)s.capacity);
    while (s.text && s.length < bytes) {
        int64_t start = s.length;
        s.text[start] = 0;
        s.n_fixed = 0;
        story_numbers(&s);
        story_person(&s, hero);
        story_person(&s, friend_);
        story_town(&s);
        story_draw(&s, "kind", "kinds"), story_draw(&s, "fkind", "kinds");
        story_draw(&s, "place", "places"), story_draw(&s, "place3", "places"), story_draw(&s, "place2", "ways");
        story_draw(&s, "where", "spots");
        story_draw(&s, "color", "colors"), story_draw(&s, "thing", "objects"), story_draw(&s, "things", "pluralss");
        story_draw(&s, "animal", "animals"), story_draw(&s, "food", "foods"), story_draw(&s, "treasure", "treasures");
        story_draw(&s, "fear", "fears"), story_draw(&s, "fear2", "fears");
        story_rule_expand(&s, "story", 5);
        if (s.length == start) break;
        if (s.length + 4096 > s.capacity) { /* room for the articles that polishing adds */
            char *bigger = (char *)realloc(s.text, (size_t)(s.capacity += 16384));
            if (!bigger) break;
            s.text = bigger;
        }
        story_polish(&s, start);
    }
    if (s.length < bytes) {
        free(s.text);
        return NULL;
    }
    *length = s.length;
    return s.text;
}

#endif
