/* tool.h - tools/kvmem.c inside a test or benchmark: its functions are at hand, and tool() runs one command.
   Include test.h (or bench.h) first, both before any other header of the system asks for less of POSIX. */
#ifndef KVMEM_TOOL_H
#define KVMEM_TOOL_H
int kvmem_main(int argc, char **argv);
#define main kvmem_main
#include "../tools/kvmem.c"
#undef main

/* One command, its word first; its stdout stays in `out`, ended by a zero. Returns its status. */
static KVMEM__UNUSED int tool(int argc, const char *const *argv) {
    const command *c = commands;
    args a;
    int status;
    char *copy[48];
    for (status = 0; status < argc; status++) copy[status] = (char *)(uintptr_t)argv[status];
    while (strcmp(c->name, argv[0])) c++;
    out.len = 0;
    js.depth = 0;
    command_name = c->name;
    status = parse_args(c, &a, argc - 1, copy + 1);
    if (status == OK) status = c->run(&a);
    free(a.word);
    put("%c", 0);
    return status;
}
/* Files of a test: FOLDER/TEST_name beside its program. Up to sixteen paths at a time. */
static char tool_folder[256];
static KVMEM__UNUSED void tool_begin(const char *program, const char *test) {
    const char *end = strrchr(program, '/');
    snprintf(tool_folder, sizeof tool_folder, "%.*s/%s_", end ? (int)(end - program) : 1, end ? program : ".", test);
}
static KVMEM__UNUSED const char *at(const char *name) {
    static char path[16][320];
    static int i;
    snprintf(path[i = (i + 1) % 16], sizeof *path, "%s%s", tool_folder, name);
    return path[i];
}
#endif
