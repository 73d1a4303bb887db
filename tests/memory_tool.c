/* `kvmem memory` as a person uses it: a talk is added, asked, listed, forgotten, checked; and all that can be wrong
   with files, stores, limits and words has one clear sentence. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include "test.h"
#include "tiny.h"
#include "tool.h"

#define STORE at("talk.kvm")
#define TALK at("talk.txt")
static char said[4096]; /* what went to stderr */

/* `kvmem memory` with these words, the store and one thread. */
#define TOOL(...) run_with((const char *const[]){ __VA_ARGS__, NULL })
static int run_with(const char *const *word) {
    const char *all[40];
    FILE *err;
    size_t size;
    long from;
    int n = 0, status;
    for (all[n++] = "memory"; *word; word++) all[n++] = *word;
    all[n++] = "--store";
    all[n++] = STORE;
    all[n++] = "-t";
    all[n++] = "1";
    fflush(stderr);
    from = ftell(stderr);
    status = tool(n, all);
    fflush(stderr);
    err = fopen(at("err"), "rb");
    size = err && !fseek(err, from, SEEK_SET) ? fread(said, 1, sizeof said - 1, err) : 0;
    if (err) fclose(err);
    said[size] = 0;
    return status;
}
static void write_file(const char *path, const char *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    if (f) { fwrite(bytes, 1, n, f); fclose(f); }
}
/* The i-th number under that key of the JSON in `out`. */
static double told(const char *key, int i) {
    char name[40];
    const char *p = out.text;
    snprintf(name, sizeof name, "\"%s\":", key);
    for (; (p = strstr(p, name)) != NULL; i--) {
        p += strlen(name);
        if (!i) return strtod(p, NULL);
    }
    return -1;
}
static int says(const char *text) { return strstr(said, text) != NULL; }
static int prints(const char *text) { return strstr(out.text, text) != NULL; }

static const char story[] =
    "Session: cooking.\n"
    "Ana: the pet of Leo is cat.\n"
    "Ben: we fried the garlic near the oven.\n"
    "Cleo: the soup was salty.\n"
    "Dan: the city of Mia is Paris.\n"
    "Eli: the car of Zoe is Volvo.\n"
    "Fay: I liked the sauce today.\n"
    "Session: travel.\n"
    "Gus: they visited the museum.\n"
    "Ivy: now the city of Mia is Rome.\n"
    "Ana: the train was crowded.\n"
    "Ben: the drink of Otto is tea.\n"
    "Cleo: we missed the ticket.\n"; /* a last line may lack its newline: see below */
static unsigned char *stored;
static size_t stored_bytes;
static int begin(void) { /* a store with the talk; made once, then written again */
    remove(STORE);
    write_file(TALK, story, sizeof story - 2);
    if (stored) {
        write_file(STORE, (const char *)stored, stored_bytes);
        return 1;
    }
    if (TOOL("add", TALK, "--segment", "lines(min=12)") != OK) return 0;
    stored = test_file(STORE, &stored_bytes);
    return stored != NULL && prints("13 lines");
}

TEST(answers_come_with_episode_file_lines_and_bytes) {
    REQUIRE(begin());
    CHECK(TOOL("ask", "what is the pet of Leo?") == OK);
    CHECK(!strncmp(out.text, "cat.\n", 5) && prints("#1 ") && prints("talk.txt:1-2") && prints("as f16"));
    CHECK(TOOL("ask", "Ben: what is the car of Zoe?", "--json", "--top", "1") == OK);
    CHECK(prints("\"answer\":\"Volvo.\"") && told("tokens_stored", 0) > 80);
    CHECK(told("working_set", 0) > 0 && told("full_f16", 0) == 2048 * told("tokens_stored", 0));
    CHECK(told("first_line", 0) <= 6 && told("last_line", 0) >= 6);
    CHECK(TOOL("ask", "what is the city of Mia?", "--embed", "fusion") == OK && !strncmp(out.text, "Rome.\n", 6));
}
TEST(the_limit_holds_and_fewer_episodes_are_read) {
    char bytes[32];
    double limit;
    int all, n;
    REQUIRE(begin());
    CHECK(TOOL("ask", "what is the drink of Otto?", "--json") == OK);
    for (all = 0; told("id", all) > 0; all++) {}
    limit = told("working_set_peak", 0) * 0.6;
    snprintf(bytes, sizeof bytes, "%.0f", limit);
    CHECK(TOOL("ask", "what is the drink of Otto?", "--json", "--limit", bytes) == OK);
    for (n = 0; told("id", n) > 0; n++) {}
    CHECK(n >= 1 && n < all && told("working_set_peak", 0) <= limit && prints("\"tea.\""));
    CHECK(TOOL("ask", "what is the drink of Otto?", "--limit", "20KiB") == FAILED && says("limit of 20480 bytes"));
    CHECK(TOOL("ask", "what is the drink of Otto?", "--limit", "1") == FAILED && out.len == 1);
}
TEST(episodes_are_listed_shown_and_forgotten) {
    int n;
    REQUIRE(begin());
    CHECK(TOOL("list", "--json") == OK);
    for (n = 0; told("id", n) > 0; n++) CHECK(told("id", n) == n + 1);
    CHECK(n >= 5 && told("last_line", n - 1) == 13);
    CHECK(TOOL("show", "#1") == OK && prints("Ana: the pet of Leo is cat.\n") && prints("version 1 of 1"));
    CHECK(TOOL("forget", "1", "--dry-run") == OK && prints("would go") && prints("1 of"));
    CHECK(TOOL("ask", "what is the pet of Leo?") == OK && !strncmp(out.text, "cat", 3));
    CHECK(TOOL("show", "1") == OK && prints("used       1 times; strength 2"));
    CHECK(TOOL("forget", "1") == OK);
    CHECK(TOOL("show", "1") == FAILED && says("no episode 1"));
    CHECK(TOOL("forget", "1") == FAILED && says("no episode 1"));
    CHECK(TOOL("ask", "what is the pet of Leo?") == OK && strncmp(out.text, "cat", 3) != 0);
    CHECK(TOOL("compact", "--json") == OK && told("after", 0) < told("before", 0));
    CHECK(TOOL("verify") == OK && prints("no fault"));
}
TEST(policies_choose_who_goes) {
    REQUIRE(begin());
    CHECK(TOOL("ask", "what is the pet of Leo?", "--top", "1") == OK); /* episode 1 is used */
    CHECK(TOOL("forget", "--policy", "fifo(keep=2)", "--dry-run", "--json") == OK && told("id", 0) == 1);
    CHECK(TOOL("forget", "--policy", "lifo(keep=2)", "--dry-run", "--json") == OK && told("id", 0) == 3);
    CHECK(TOOL("forget", "--policy", "mvfo(keep=0)", "--dry-run") == OK && prints("would be forgotten"));
    /* after 12 days exp(-12 / 5) = 0.09 is left of what was never used, exp(-12 / 10) = 0.30 of episode 1 */
    CHECK(TOOL("forget", "--policy", "memorybank(after=12,theta=0.1)", "--dry-run", "--json") == OK);
    CHECK(told("id", 0) == 2);
    CHECK(TOOL("forget", "--policy", "memorybank(after=12,theta=0.1,bug_compat=1)", "--dry-run", "--json") == OK &&
          told("id", 0) == 1);
    CHECK(TOOL("forget", "--policy", "hema(share=0.25)", "--json") == OK && told("id", 0) == 2);
    CHECK(TOOL("show", "1") == OK && TOOL("show", "2") == FAILED);
    CHECK(TOOL("forget", "--policy", "fifo") == MISUSED && says("keep=N"));
    CHECK(TOOL("forget", "--policy", "fifo(kep=2)") == MISUSED && says("what is 'kep'?"));
    CHECK(TOOL("forget", "--policy", "elephant") == MISUSED && says("elephant"));
}
TEST(files_that_are_no_talk_are_refused) {
    remove(STORE);
    CHECK(TOOL("add", at("no_such_talk.txt")) == FAILED && says("no_such_talk.txt: cannot open"));
    write_file(at("bad"), "\n \n\n", 4);
    CHECK(TOOL("add", at("bad")) == FAILED && says("is empty"));
    write_file(at("bad"), "", 0);
    CHECK(TOOL("add", at("bad")) == FAILED && says("is empty"));
    write_file(at("bad"), "a\0b\n", 4);
    CHECK(TOOL("add", at("bad")) == FAILED && says("NUL bytes"));
    CHECK(TOOL("add", "tests") == FAILED && says("directory"));
    CHECK(TOOL("ask", "what is the pet of Leo?") == FAILED && says("nothing was told yet"));
    CHECK(TOOL("add", "--segment", "lines(min=9,max=3)", TALK) == MISUSED && says("min <= max"));
    CHECK(TOOL("add", "--segment", "nonsense", TALK) == MISUSED && says("nonsense"));
    CHECK(TOOL("add", "--codec", "nonsense", TALK) == FAILED && says("nonsense"));
}
TEST(words_that_make_no_sense_are_refused) {
    remove(STORE);
    CHECK(TOOL("ask", "x") == FAILED && says("there is no memory yet"));
    CHECK(TOOL("list") == FAILED && says("there is no memory yet"));
    CHECK(TOOL("askk", "x") == MISUSED && says("did you mean ask?"));
    CHECK(TOOL("ask") == MISUSED && says("needs a question"));
    CHECK(TOOL("ask", "what", "is") == MISUSED && says("quotes"));
    CHECK(TOOL("forget") == MISUSED && says("forget what?"));
    REQUIRE(begin());
    CHECK(TOOL("ask", " ") == MISUSED && says("empty"));
    CHECK(TOOL("show", "one") == MISUSED && says("'one'"));
    CHECK(TOOL("ask", "x", "--embed", "smell") == MISUSED && says("smell"));
    CHECK(TOOL("ask", "what is the pet of Leo?", "--embed", "keys(layer=1)") == FAILED);
    CHECK(says("no episode has a vector"));
    CHECK(TOOL("ask", "what is the pet of Leo?", "--embed", "hidden(layer=77)") == MISUSED && says("4 layers"));
}
TEST(a_damaged_store_and_one_of_another_model_are_named) {
    size_t size = 0, n;
    unsigned char *bytes;
    uint8_t *other;
    REQUIRE(begin());
    bytes = test_file(STORE, &size);
    REQUIRE(bytes && size > 5000);
    bytes[size - 3000] ^= 4; /* in the rows of the last episode */
    write_file(STORE, (const char *)bytes, size);
    free(bytes);
    CHECK(TOOL("verify") == FAILED && says("checksum") && says("damaged: 1 faults"));
    CHECK(TOOL("ask", "what is the pet of Leo?", "--top", "1") == OK && !strncmp(out.text, "cat", 3));
    other = tiny_model(KVMEM_F32, 0, &n);
    write_file(at("other.gguf"), (const char *)other, n);
    free(other);
    CHECK(TOOL("list", "-m", at("other.gguf")) == FAILED && says(STORE) && says("model"));
    write_file(STORE, "this is no store, it is a text", 30);
    CHECK(TOOL("list") == FAILED && says(STORE));
    CHECK(TOOL("add", TALK) == FAILED && says(STORE));
}
TEST(other_ways_to_cut_find_and_guard) {
    REQUIRE(begin());
    remove(STORE);
    CHECK(TOOL("add", TALK, "--segment", "fixed(size=20)", "--codec", "f16", "--embed", "hidden(layer=2)") == OK);
    CHECK(TOOL("list", "--json") == OK && told("id", 2) == 3 && told("tokens", 0) < 40);
    CHECK(TOOL("ask", "what is the pet of Leo?", "--embed", "hidden(layer=2)", "--top", "2", "--neighbours", "1",
               "--json") == OK && prints("\"neighbour\":true"));
    CHECK(TOOL("ask", "what is the pet of Leo?", "--guard", "--kv", "full codec=q8_0") == OK && prints("from "));
}

int main(int argc, char **argv) {
    FILE *f = fopen("examples/models/tiny.gguf", "rb");
    test_begin(argc, argv, "memory_tool");
    if (!f) { printf("memory_tool: 0 passed, 0 failed, 1 skipped\n"); return 0; }
    fclose(f);
    tool_begin(argv[0], "memory_tool");
    if (!freopen(at("err"), "wb", stderr)) return 2;
    RUN(answers_come_with_episode_file_lines_and_bytes);
    RUN(the_limit_holds_and_fewer_episodes_are_read);
    RUN(episodes_are_listed_shown_and_forgotten);
    RUN(policies_choose_who_goes);
    RUN(files_that_are_no_talk_are_refused);
    RUN(words_that_make_no_sense_are_refused);
    RUN(a_damaged_store_and_one_of_another_model_are_named);
    RUN(other_ways_to_cut_find_and_guard);
    free(stored);
    return test_end();
}
