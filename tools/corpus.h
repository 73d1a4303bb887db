/* corpus.h - a synthetic language of long conversations, on which kvmem trains and judges its own
   small model. Integers only: the same parameters and seed give the same tokens on every machine.

       Session: cooking.                                   a session and its topic
       Ana: we fried the garlic near the oven.             filler: small talk on the topic
       Dan: the city of Mia is Paris.                      fact: (person, attribute) = value
       Ben: what is the city of Mia? Paris.                question, the answer in one word
       Eli: now the city of Mia is Rome.                   update: the latest value is the right one
       Dan: the friend of Leo is Mia.                      relation: its value is a person
       Ana: what is the city of the friend of Leo? Rome.   two steps
       Ivy: which was first, the city of Mia or the pet of Leo? city.
       Gus: note alpha says red tea cat golf pie rum Oslo hen.
       Fay: read note alpha? red tea cat golf pie rum Oslo hen.
       Cleo: Mia liked the soup.                           distractor: a name that tells no fact

   The person's name stands last before "is" and last before "?", so that a value and the question for it
   follow the same words at the same distances.

   Vocabulary: special tokens, the 256 bytes, then whole words. Each word has one form only: with
   its leading space inside a line, without it at the start of a line (speakers and "Session").
   Therefore a line has one token a word, and a byte-level BPE tokenizer that takes whole words
   ("gpt2" with pre-tokenizer "llama-bpe") reads the text back to the same ids.

   Held out: of the 24 values of an attribute a person has 4 that no training stream uses
   (corpus_is_held_out); evaluation streams use only those. Training and evaluation also draw from
   disjoint seeds: the top bit of a seed is 0 for training and 1 for evaluation whatever was given.

   Needs the C library's memory functions only; all functions are static; nothing global changes. */
#ifndef CORPUS_H
#define CORPUS_H
#include "gguf_write.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__GNUC__) || defined(__clang__)
#define CORPUS__FN static __attribute__((unused))
#else
#define CORPUS__FN static
#endif

/* --- interface ------------------------------------------------------------------------------- */

enum {
    CORPUS_SINGLE,  /* a fact told once (or a relation) */
    CORPUS_UPDATED, /* told, then told anew with another value */
    CORPUS_TWICE,   /* told twice, the same */
    CORPUS_CHAIN,   /* two steps: relation, then attribute */
    CORPUS_ORDER,   /* which of two facts was told first */
    CORPUS_COPY,    /* repeat the eight words of a note */
    CORPUS_KINDS
};
enum { CORPUS_BOS = 0, CORPUS_EOT = 1, CORPUS_N_SPECIAL = 2, CORPUS_BYTES = 2 }; /* byte b: 2 + b */
enum { CORPUS_PERSONS = 64, CORPUS_ATTRS = 8, CORPUS_VALUES = 24, CORPUS_RELATIONS = 2,
       CORPUS_LABELS = 16, CORPUS_NOTE = 8, CORPUS_SPEAKERS = 8, CORPUS_TOPICS = 8,
       CORPUS_KEYS = CORPUS_ATTRS + CORPUS_RELATIONS, /* attr of a relation: 8 friend, 9 boss */
       CORPUS_LINE = 32 };                            /* no line is longer */
enum { CORPUS_OK, CORPUS_BAD_PARAMETER, CORPUS_NO_MEMORY };

typedef struct corpus_params {
    int length;         /* tokens, exactly, <|bos|> first; the last line may be cut: 2..2^24 */
    int persons, attrs; /* how many of each this stream uses (more: more ambiguity), 1..64, 1..8 */
    int facts;          /* most facts told, spread evenly over the stream; 0: as many as come */
    int filler;         /* per cent of lines that are filler, 0..99; 0: facts and questions only */
    int ask;            /* per cent of the other lines that are questions, 0..99 */
    int update, twice;  /* per cent of tellings that change an earlier fact, that repeat one */
    int chain;          /* per cent of tellings that are relations, of questions with two steps */
    int order;          /* per cent of questions that ask which was told first */
    int copy;           /* per cent of tellings that are notes, of questions that read a note */
    int distract;       /* per cent of lines with a person's name that tell no fact */
    int raw_copy;       /* > 0: no language: random words and spans of them again; answers are
                           the words of a repeat that follow so many repeated ones; 0..8 */
    int raw_gram;       /* with raw_copy: only this many different words (random ones); 0: all */
    int held_out;       /* 0: training combinations, 1: held-out ones */
    uint64_t seed;
} corpus_params;

typedef struct corpus_question {
    int kind, at, n;  /* the answer is ids[at .. at+n) */
    int told;         /* position of the value that answers (of a note: its first word) */
    int person, attr; /* COPY: person -1 and attr the label; CHAIN: those of the first step */
    int again;        /* SINGLE to TWICE, COPY: 1 if it was asked before in this stream */
} corpus_question;

typedef struct corpus_stream {
    int *ids;              /* (n) */
    unsigned char *answer; /* (n) 1: ids[i] is a token of an answer, 0: it is not */
    int n;
    corpus_question *q;    /* (n_q) in the order of the stream; none whose answer is cut */
    int n_q;
    int cap, cap_q;        /* of the buffers, which the next corpus_make uses again */
} corpus_stream;

/* A zeroed stream is a valid start. Returns CORPUS_OK or another code of the list above. */
CORPUS__FN int corpus_make(corpus_stream *s, const corpus_params *p);
CORPUS__FN void corpus_free(corpus_stream *s);
/* NULL, or what is wrong with the parameters. */
CORPUS__FN const char *corpus_check(const corpus_params *p);
CORPUS__FN const char *corpus_error(int code);
CORPUS__FN const char *corpus_kind_name(int kind);

/* A checksum (64-bit FNV-1a) of the ids and answer marks, that starts with or goes on from h. */
CORPUS__FN uint64_t corpus_hash(uint64_t h, const corpus_stream *s);
#define CORPUS_HASH_START UINT64_C(14695981039346656037)

CORPUS__FN int corpus_n_vocab(void);
/* The text of a token, with its leading space where it has one; "<|bos|>" for a special one; bytes
   have no text of their own here (NULL), see corpus_text. */
CORPUS__FN const char *corpus_word(int id);
/* The bytes of a token (0 for special ones); out holds at least 16. */
CORPUS__FN int corpus_text(int id, char *out);
CORPUS__FN int corpus_is_held_out(int person, int attr, int value);
/* Writes the tokenizer's keys of a GGUF file; <|bos|> is added in front of a text, as every stream
   begins with it. */
CORPUS__FN void corpus_write_vocab(gguf_writer *g);
/* Ids of words: of a person inside a line, an attribute or relation (0..9), a value. */
CORPUS__FN int corpus_person_id(int person);
CORPUS__FN int corpus_attr_id(int attr);
CORPUS__FN int corpus_value_id(int attr, int value);

/* Evaluation: a context that ends with a whole line and then questions, each to be put on the same
   context. All facts are held-out combinations.
     conv    a natural conversation: sessions, about 70 % filler, facts told once, updated, told
             twice and chained; some questions asked and answered on the way
     needle  one fact at a depth, the rest filler and other persons' facts of other attributes
     multi   many facts told once, all of them asked
     order   which of two was told first        copy   notes to be repeated
     ppl     a stream like those of training, held out; no questions apart */
enum { CORPUS_CONV, CORPUS_NEEDLE, CORPUS_MULTI, CORPUS_ORDERS, CORPUS_COPIES, CORPUS_PPL,
       CORPUS_SUITES };
typedef struct corpus_eval_params {
    int suite;
    int ctx;            /* tokens of the context, exactly: 128..2^24 */
    int questions;      /* most questions; 0: the suite's choice */
    int facts;          /* facts told (copy: notes; needle: the other facts), 14 tokens each and
                           80 must fit in ctx; 0: the suite's choice for this length */
    int depth;          /* needle: where the fact stands, per mille of the context, 0..1000 */
    int persons, attrs; /* pool; 0: the suite's choice */
    uint64_t seed;
} corpus_eval_params;
typedef struct corpus_prompt {
    int ids[CORPUS_LINE], n;           /* "Ben: what is the city of Mia?" */
    int answer[CORPUS_NOTE], n_answer; /* " Paris" */
    int kind, person, attr;            /* as in corpus_question */
    int told;                          /* position in the context of the value that answers */
    int asked;                         /* times that this fact was asked in the context already */
} corpus_prompt;
typedef struct corpus_test {
    int *ids, n;      /* the context */
    corpus_prompt *q; /* (n_q) */
    int n_q;
    int cap_q;        /* of q, used again by the next corpus_test_make, as are ids */
    corpus_stream stream;
} corpus_test;
/* A zeroed test is a valid start. */
CORPUS__FN int corpus_test_make(corpus_test *t, const corpus_eval_params *p);
CORPUS__FN void corpus_test_free(corpus_test *t);
CORPUS__FN const char *corpus_test_check(const corpus_eval_params *p);
CORPUS__FN const char *corpus_suite_name(int suite); /* "conv" ...; NULL behind the last */

/* --- words ----------------------------------------------------------------------------------- */

/* Function words, X(word): the enum of their ids and their texts come from one list. */
#define CORPUS__FUNCTION_WORDS(X) \
    X(the) X(of) X(is) X(now) X(what) X(which) X(was) X(first) X(or) X(note) X(says) X(read) \
    X(liked) X(that) X(and) X(with) X(near) X(for) X(we) X(I) X(they) X(you) X(it) X(very) X(too) \
    X(again) X(because) X(so) X(but) X(my) X(our) X(this) X(every) X(only) X(today) X(yesterday) \
    X(before) X(after) X(think) X(saw) X(wanted) X(found) X(maybe) X(really) X(always) X(never) \
    X(still) X(not) X(also) X(often)

enum { CORPUS__STOP = CORPUS_BYTES + 256, /* ".\n" */
       CORPUS__SESSION,
       CORPUS__SPEAKER,
       CORPUS__FUNCTION = CORPUS__SPEAKER + CORPUS_SPEAKERS };
#define CORPUS__X(w) CORPUS_w_##w,
enum { CORPUS__BEFORE_WORDS = CORPUS__FUNCTION - 1,
       CORPUS__FUNCTION_WORDS(CORPUS__X)
       CORPUS__PERSON };
#undef CORPUS__X
enum { CORPUS__ATTR = CORPUS__PERSON + CORPUS_PERSONS,
       CORPUS__LABEL = CORPUS__ATTR + CORPUS_KEYS,
       CORPUS__VALUE = CORPUS__LABEL + CORPUS_LABELS,
       CORPUS__TOPIC = CORPUS__VALUE + CORPUS_ATTRS * CORPUS_VALUES,
       CORPUS__NOUNS = 10, CORPUS__VERBS = 5, CORPUS__ADJECTIVES = 5,
       CORPUS__TOPIC_WORDS = 1 + CORPUS__NOUNS + CORPUS__VERBS + CORPUS__ADJECTIVES,
       CORPUS__N = CORPUS__TOPIC + CORPUS_TOPICS * CORPUS__TOPIC_WORDS };

#define CORPUS__X(w) " " #w,
static const char *const corpus__words[] = {
    ".\n", "Session", "Ana", "Ben", "Cleo", "Dan", "Eli", "Fay", "Gus", "Ivy",
    CORPUS__FUNCTION_WORDS(CORPUS__X)
    /* persons */
    " Mia", " Leo", " Zoe", " Max", " Eva", " Tom", " Ida", " Sam", " Lily", " Noah", " Emma",
    " Liam", " Nora", " Hugo", " Ruth", " Paul", " Sara", " Finn", " Rosa", " Carl", " Jane",
    " Mark", " Ella", " Otto", " Vera", " Ivan", " Lena", " Omar", " Tara", " Nils", " Gina",
    " Felix", " Clara", " Oscar", " Alice", " Simon", " Maria", " Peter", " Julia", " Aaron",
    " Laura", " David", " Nadia", " Bruno", " Helen", " Jacob", " Irene", " Kevin", " Olga",
    " Victor", " Stella", " Martin", " Diana", " Walter", " Sofia", " Edgar", " Amira", " Boris",
    " Celia", " Dylan", " Fiona", " George", " Hanna", " Isaac",
    /* attributes and relations */
    " city", " pet", " job", " color", " food", " drink", " sport", " car", " friend", " boss",
    /* labels of notes */
    " alpha", " beta", " gamma", " delta", " epsilon", " zeta", " eta", " theta", " iota",
    " kappa", " lambda", " sigma", " omega", " tau", " rho", " phi",
    /* values: city */
    " Paris", " Rome", " Oslo", " Berlin", " Madrid", " Lisbon", " Vienna", " Prague", " Warsaw",
    " Dublin", " Athens", " Cairo", " Tokyo", " Delhi", " Lima", " Quito", " Boston", " Denver",
    " Seattle", " Toronto", " Sydney", " Nairobi", " Seoul", " Hanoi",
    /* pet */
    " cat", " dog", " parrot", " rabbit", " hamster", " turtle", " lizard", " goldfish", " pony",
    " ferret", " mouse", " snake", " canary", " gecko", " frog", " goat", " duck", " hen",
    " donkey", " spider", " crab", " snail", " pigeon", " hedgehog",
    /* job */
    " doctor", " nurse", " teacher", " lawyer", " baker", " pilot", " farmer", " painter",
    " plumber", " chemist", " judge", " barber", " tailor", " miner", " sailor", " singer",
    " dancer", " writer", " editor", " waiter", " banker", " dentist", " architect", " mechanic",
    /* color */
    " red", " blue", " green", " yellow", " purple", " orange", " black", " white", " gray",
    " brown", " pink", " violet", " gold", " silver", " turquoise", " crimson", " beige",
    " indigo", " maroon", " olive", " teal", " ivory", " scarlet", " amber",
    /* food */
    " pizza", " pasta", " rice", " bread", " cheese", " sushi", " curry", " salad", " burger",
    " noodles", " pancakes", " tacos", " steak", " beans", " lentils", " omelet", " waffles",
    " pudding", " dumplings", " ham", " tofu", " yogurt", " cake", " pie",
    /* drink */
    " tea", " coffee", " water", " milk", " juice", " lemonade", " cocoa", " wine", " beer",
    " cider", " soda", " rum", " whiskey", " vodka", " gin", " sherry", " brandy", " champagne",
    " espresso", " latte", " smoothie", " kombucha", " tonic", " mead",
    /* sport */
    " tennis", " golf", " hockey", " soccer", " rugby", " cricket", " boxing", " judo", " karate",
    " fencing", " rowing", " sailing", " skiing", " surfing", " cycling", " archery",
    " wrestling", " badminton", " volleyball", " basketball", " baseball", " handball",
    " climbing", " swimming",
    /* car */
    " Ford", " Fiat", " Volvo", " Toyota", " Honda", " Mazda", " Audi", " Tesla", " Porsche",
    " Ferrari", " Renault", " Peugeot", " Skoda", " Subaru", " Nissan", " Jeep", " Lexus",
    " Bentley", " Jaguar", " Opel", " Saab", " Kia", " Citroen", " Dacia",
    /* topics: the name, ten nouns, five verbs, five adjectives */
    " cooking", " pan", " oven", " knife", " recipe", " garlic", " pepper", " sauce", " dough",
    " bowl", " soup", " stirred", " fried", " tasted", " chopped", " served", " salty", " crispy",
    " spicy", " burnt", " creamy",
    " garden", " rose", " tree", " fence", " soil", " shovel", " lawn", " hedge", " pond",
    " tulip", " seed", " planted", " trimmed", " watered", " mowed", " picked", " muddy",
    " leafy", " fresh", " thorny", " wild",
    " travel", " train", " ticket", " hotel", " map", " beach", " airport", " suitcase",
    " bridge", " museum", " tour", " booked", " visited", " missed", " crossed", " reached",
    " crowded", " cheap", " distant", " scenic", " delayed",
    " music", " guitar", " drum", " song", " concert", " piano", " band", " melody", " stage",
    " album", " choir", " played", " heard", " recorded", " tuned", " practiced", " loud",
    " gentle", " catchy", " rhythmic", " famous",
    " weather", " storm", " cloud", " wind", " thunder", " snow", " rainbow", " forecast",
    " umbrella", " puddle", " fog", " watched", " noticed", " predicted", " feared", " enjoyed",
    " windy", " chilly", " humid", " rainy", " misty",
    " office", " desk", " printer", " meeting", " report", " manager", " email", " deadline",
    " chair", " project", " budget", " checked", " signed", " finished", " moved", " copied",
    " urgent", " boring", " busy", " messy", " final",
    " movies", " actor", " scene", " screen", " plot", " camera", " trailer", " director",
    " hero", " villain", " poster", " filmed", " rented", " praised", " paused", " showed",
    " funny", " scary", " romantic", " silent", " thrilling",
    " health", " muscle", " clinic", " pill", " bandage", " vitamin", " pulse", " mattress",
    " knee", " cough", " diet", " measured", " treated", " tested", " healed", " stretched",
    " healthy", " sore", " painful", " mild", " regular" };
#undef CORPUS__X
/* As many words as the enums above say, or this does not compile. */
typedef char corpus__words_are_complete
    [sizeof corpus__words / sizeof corpus__words[0] == CORPUS__N - CORPUS__STOP ? 1 : -1];

CORPUS__FN int corpus_n_vocab(void) { return CORPUS__N; }
CORPUS__FN const char *corpus_word(int id) {
    if (id == CORPUS_BOS) return "<|bos|>";
    if (id == CORPUS_EOT) return "<|eot|>";
    return id >= CORPUS__STOP && id < CORPUS__N ? corpus__words[id - CORPUS__STOP] : NULL;
}
CORPUS__FN int corpus_text(int id, char *out) {
    const char *w = id >= CORPUS_N_SPECIAL ? corpus_word(id) : NULL;
    if (w) {
        memcpy(out, w, strlen(w));
        return (int)strlen(w);
    }
    if (id < CORPUS_BYTES || id >= CORPUS_BYTES + 256) return 0;
    out[0] = (char)(id - CORPUS_BYTES);
    return 1;
}
CORPUS__FN int corpus_person_id(int person) { return CORPUS__PERSON + person; }
CORPUS__FN int corpus_attr_id(int attr) { return CORPUS__ATTR + attr; }
CORPUS__FN int corpus_value_id(int attr, int value) {
    return attr < CORPUS_ATTRS ? CORPUS__VALUE + attr * CORPUS_VALUES + value
                               : CORPUS__PERSON + value;
}
CORPUS__FN const char *corpus_kind_name(int kind) {
    static const char *const names[] = { "single", "updated", "twice", "chain", "order", "copy" };
    return kind >= 0 && kind < CORPUS_KINDS ? names[kind] : NULL;
}
CORPUS__FN const char *corpus_suite_name(int suite) {
    static const char *const names[] = { "conv", "needle", "multi", "order", "copy", "ppl" };
    return suite >= 0 && suite < CORPUS_SUITES ? names[suite] : NULL;
}
CORPUS__FN const char *corpus_error(int code) {
    return code == CORPUS_OK             ? "no error"
           : code == CORPUS_BAD_PARAMETER ? "a parameter is out of range"
                                          : "no memory";
}

/* --- the vocabulary in a model file ----------------------------------------------------------- */

/* A token as byte-level BPE spells it: " city" is "\u0120city", ".\n" is ".\u010a". */
static void corpus__spelling(int id, char *out) {
    char text[16];
    int n, i;
    if (id < CORPUS_N_SPECIAL) {
        strcpy(out, corpus_word(id));
        return;
    }
    n = corpus_text(id, text);
    for (i = 0; i < n; i++) out += gguf_bpe_byte((unsigned char)text[i], out);
    *out = 0;
}
/* With pre-tokenizer "llama-bpe" a word of the vocabulary is taken whole and merges do not matter;
   other words fall into bytes. Programs want some merges in the file: those that make words of two
   bytes are all that can be. */
CORPUS__FN void corpus_write_vocab(gguf_writer *g) {
    char text[40];
    int i, n = 0, pass;
    gguf_kv_str(g, "tokenizer.ggml.model", "gpt2");
    gguf_kv_str(g, "tokenizer.ggml.pre", "llama-bpe");
    gguf_kv_array(g, "tokenizer.ggml.tokens", GGUF_STR, CORPUS__N);
    for (i = 0; i < CORPUS__N; i++) {
        corpus__spelling(i, text);
        gguf_str(g, text);
    }
    gguf_kv_array(g, "tokenizer.ggml.token_type", GGUF_I32, CORPUS__N);
    for (i = 0; i < CORPUS__N; i++) gguf_u32(g, i < CORPUS_N_SPECIAL ? 3 : 1); // control, normal
    for (pass = 0; pass < 2; pass++) {
        if (pass) gguf_kv_array(g, "tokenizer.ggml.merges", GGUF_STR, n);
        for (i = CORPUS__STOP; i < CORPUS__N; i++) {
            char *p = text;
            if (strlen(corpus_word(i)) != 2) continue;
            n++;
            p += gguf_bpe_byte((unsigned char)corpus_word(i)[0], p);
            *p++ = ' ';
            gguf_bpe_byte((unsigned char)corpus_word(i)[1], p);
            if (pass) gguf_str(g, text);
        }
    }
    gguf_kv_u32(g, "tokenizer.ggml.bos_token_id", CORPUS_BOS);
    gguf_kv_u32(g, "tokenizer.ggml.eos_token_id", CORPUS_EOT);
    gguf_kv_bool(g, "tokenizer.ggml.add_bos_token", 1);
}

/* --- random numbers -------------------------------------------------------------------------- */

/* splitmix64's finalizer: number i of a stream is mix(key + i * golden ratio). */
static uint64_t corpus__mix(uint64_t z) {
    z += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}
/* In each block of six values one is held out, chosen by person, attribute and block: exactly one
   in six, four for every (person, attribute). */
static int corpus__held_slot(int person, int attr, int block) {
    return (int)(corpus__mix((uint64_t)((person * CORPUS_ATTRS + attr) * 4 + block)) % 6);
}
CORPUS__FN int corpus_is_held_out(int person, int attr, int value) {
    return attr < CORPUS_ATTRS && value % 6 == corpus__held_slot(person, attr, value / 6);
}

/* --- the conversation while it is written ----------------------------------------------------- */

typedef struct corpus__fact {
    int value;        /* 0..23, or a person for a relation */
    int first, at;    /* positions of the value: first told, latest told */
    int told, asked;  /* how often */
    int updated;
} corpus__fact;

typedef struct corpus__talk {
    uint64_t key, count;
    int held_out, topic, limit;       /* limit: tokens of the stream */
    int persons[CORPUS_PERSONS], n_persons, attrs[CORPUS_ATTRS], n_attrs;
    corpus__fact fact[CORPUS_PERSONS * CORPUS_KEYS]; /* person * CORPUS_KEYS + attr */
    short list[CORPUS_PERSONS * CORPUS_KEYS];        /* the facts told so far */
    short deck[CORPUS_PERSONS * CORPUS_ATTRS];       /* facts to come, in no order */
    short rel_list[CORPUS_PERSONS * CORPUS_RELATIONS], rel_deck[CORPUS_PERSONS * CORPUS_RELATIONS];
    int n_list, n_deck, n_rel_list, n_rel_deck;
    int label[CORPUS_LABELS], note[CORPUS_LABELS][CORPUS_NOTE]; /* by order of telling */
    int note_at[CORPUS_LABELS], note_asked[CORPUS_LABELS], n_notes;
    int w[CORPUS_LINE], n;            /* the line */
    int answer, n_answer;             /* where in the line */
    corpus_question ask;              /* the question of the line, when n_answer > 0 */
    corpus_stream *out;
} corpus__talk;

static int corpus__below(corpus__talk *t, int n) {
    const uint64_t r = corpus__mix(t->key + UINT64_C(0x9e3779b97f4a7c15) * t->count++);
    return (int)(((r >> 32) * (uint64_t)n) >> 32);
}
/* k of the numbers 0..n-1, in random order */
static void corpus__choose(corpus__talk *t, int *out, int k, int n) {
    int all[CORPUS_PERSONS], i;
    for (i = 0; i < n; i++) all[i] = i;
    for (i = 0; i < k; i++) {
        const int j = i + corpus__below(t, n - i), v = all[j];
        all[j] = all[i];
        out[i] = all[i] = v;
    }
}
static void corpus__begin(corpus__talk *t, corpus_stream *s, int limit, int persons, int attrs,
                          int held_out, uint64_t seed) {
    int i, j;
    memset(t, 0, sizeof *t);
    t->key = corpus__mix((seed & (UINT64_MAX >> 1)) | (held_out ? UINT64_C(1) << 63 : 0));
    t->held_out = held_out;
    t->limit = limit;
    t->out = s;
    t->n_persons = persons;
    t->n_attrs = attrs;
    corpus__choose(t, t->persons, persons, CORPUS_PERSONS);
    corpus__choose(t, t->attrs, attrs, CORPUS_ATTRS);
    corpus__choose(t, t->label, CORPUS_LABELS, CORPUS_LABELS);
    for (i = 0; i < persons; i++) {
        for (j = 0; j < attrs; j++)
            t->deck[t->n_deck++] = (short)(t->persons[i] * CORPUS_KEYS + t->attrs[j]);
        for (j = CORPUS_ATTRS; j < CORPUS_KEYS && persons > 1; j++)
            t->rel_deck[t->n_rel_deck++] = (short)(t->persons[i] * CORPUS_KEYS + j);
    }
    t->topic = corpus__below(t, CORPUS_TOPICS);
    s->n = s->n_q = 0;
    s->ids[0] = CORPUS_BOS;
    s->answer[0] = 0;
    s->n = 1;
}
static int corpus__draw(corpus__talk *t, short *deck, int *n) {
    const int i = corpus__below(t, *n), f = deck[i];
    deck[i] = deck[--*n];
    return f;
}

/* --- lines ------------------------------------------------------------------------------------ */

static void corpus__w(corpus__talk *t, int id) { t->w[t->n++] = id; }
static void corpus__mark(corpus__talk *t, int c) { corpus__w(t, CORPUS_BYTES + c); }
/* "Ana:" by anyone */
static void corpus__speak(corpus__talk *t) {
    t->n = t->n_answer = 0;
    corpus__w(t, CORPUS__SPEAKER + corpus__below(t, CORPUS_SPEAKERS));
    corpus__mark(t, ':');
}
/* "the city of Mia" */
static void corpus__the(corpus__talk *t, int fact) {
    corpus__w(t, CORPUS_w_the);
    corpus__w(t, CORPUS__ATTR + fact % CORPUS_KEYS);
    corpus__w(t, CORPUS_w_of);
    corpus__w(t, CORPUS__PERSON + fact / CORPUS_KEYS);
}
static int corpus__value_of(const corpus__talk *t, int fact) {
    return corpus_value_id(fact % CORPUS_KEYS, t->fact[fact].value);
}
/* Room for one more question; the stream keeps its old buffer when there is no memory. */
static int corpus__grow_q(corpus_stream *s) {
    corpus_question *q;
    const int cap = s->cap_q * 2 + 64;
    if (s->n_q < s->cap_q) return CORPUS_OK;
    q = (corpus_question *)realloc(s->q, (size_t)cap * sizeof *q);
    if (!q) return CORPUS_NO_MEMORY;
    s->q = q;
    s->cap_q = cap;
    return CORPUS_OK;
}
/* The line goes to the stream, cut where the stream is full. */
static int corpus__put(corpus__talk *t) {
    corpus_stream *s = t->out;
    const int room = t->limit - s->n, n = t->n < room ? t->n : room;
    memcpy(s->ids + s->n, t->w, (size_t)n * sizeof *t->w);
    memset(s->answer + s->n, 0, (size_t)n);
    if (t->n_answer && t->answer + t->n_answer <= n) {
        if (corpus__grow_q(s)) return CORPUS_NO_MEMORY;
        t->ask.at = s->n + t->answer;
        t->ask.n = t->n_answer;
        s->q[s->n_q++] = t->ask;
        memset(s->answer + t->ask.at, 1, (size_t)t->ask.n);
    }
    s->n += n;
    return CORPUS_OK;
}

/* Small talk: sentences by their number of words. Above zero: a word; below: a noun and another
   noun, an adjective and another one, a verb, a person of the stream. */
enum { CORPUS__NO = -6, CORPUS__N1, CORPUS__N2, CORPUS__A1, CORPUS__A2, CORPUS__V };
#define W(w) CORPUS_w_##w
#define N CORPUS__N1
#define M CORPUS__N2
#define A CORPUS__A1
#define B CORPUS__A2
#define V CORPUS__V
#define P CORPUS__NO
static const short corpus__filler[][10] = {
    { 4, W(the), N, W(was), A }, { 4, W(we), V, W(the), N }, { 4, W(they), V, W(that), N },
    { 4, W(it), W(was), W(very), A }, { 4, W(you), V, W(my), N }, { 4, W(every), N, W(was), A },
    { 5, W(the), N, W(was), W(really), A }, { 5, W(I), W(only), V, W(the), N },
    { 5, W(we), V, W(the), A, N },
    { 5, W(I), V, W(our), N, W(again) }, { 5, W(they), W(never), V, W(the), N },
    { 5, W(this), N, W(is), W(very), A }, { 5, W(it), W(was), W(also), W(very), A },
    { 5, W(we), W(often), V, W(the), N },
    { 6, W(I), W(think), W(the), N, W(is), A }, { 6, W(you), W(always), V, W(the), A, N },
    { 6, W(my), N, W(was), W(not), W(very), A },
    { 6, W(we), W(wanted), W(our), N, W(and), M }, { 6, W(they), V, W(it), W(near), W(the), N },
    { 7, W(we), V, W(the), N, W(and), W(the), M },
    { 7, W(the), N, W(was), A, W(but), W(not), B },
    { 7, W(yesterday), W(they), V, W(this), W(very), A, N },
    { 7, W(I), W(saw), W(the), A, N, W(near), W(it) },
    { 8, W(today), W(we), V, W(the), N, W(near), W(the), M },
    { 8, W(they), V, W(our), N, W(because), W(it), W(was), A },
    { 8, W(the), N, W(is), A, W(so), W(we), V, W(it) },
    { 8, W(I), W(think), W(this), N, W(is), W(really), A, W(again) },
    { 9, W(we), W(still), V, W(the), N, W(because), W(it), W(was), A },
    { 9, W(the), A, N, W(was), W(too), B, W(for), W(our), M },
    { 9, W(after), W(the), N, W(they), V, W(the), A, M, W(again) },
    { 9, W(maybe), W(you), V, W(the), N, W(and), W(found), W(that), M },
    { 9, W(before), W(the), N, W(we), W(also), V, W(our), A, M } };
static const short corpus__distract[][10] = {
    { 4, P, W(liked), W(the), N }, { 5, P, V, W(the), A, N },
    { 6, W(we), V, W(the), N, W(with), P }, { 6, W(I), W(saw), P, W(near), W(the), N } };
#undef W
#undef N
#undef M
#undef A
#undef B
#undef V
#undef P
/* The first sentence of 4, 5, .. 9 words in the table, and its end. */
static const short corpus__filler_from[] = { 0, 6, 14, 19, 23, 27, 32 };

static void corpus__sentence(corpus__talk *t, const short *form) {
    const int noun = CORPUS__TOPIC + t->topic * CORPUS__TOPIC_WORDS + 1;
    const int verb = noun + CORPUS__NOUNS, adjective = verb + CORPUS__VERBS;
    const int n1 = corpus__below(t, CORPUS__NOUNS), a1 = corpus__below(t, CORPUS__ADJECTIVES);
    int i;
    corpus__speak(t);
    for (i = 1; i <= form[0]; i++) {
        switch (form[i]) {
        case CORPUS__N1: corpus__w(t, noun + n1); break;
        case CORPUS__N2:
            corpus__w(t, noun + (n1 + 1 + corpus__below(t, CORPUS__NOUNS - 1)) % CORPUS__NOUNS);
            break;
        case CORPUS__A1: corpus__w(t, adjective + a1); break;
        case CORPUS__A2:
            corpus__w(t, adjective + (a1 + 1 + corpus__below(t, CORPUS__ADJECTIVES - 1)) %
                                         CORPUS__ADJECTIVES);
            break;
        case CORPUS__V: corpus__w(t, verb + corpus__below(t, CORPUS__VERBS)); break;
        case CORPUS__NO:
            corpus__w(t, CORPUS__PERSON + t->persons[corpus__below(t, t->n_persons)]);
            break;
        default: corpus__w(t, form[i]);
        }
    }
    corpus__w(t, CORPUS__STOP);
}
static int corpus__line_filler(corpus__talk *t) {
    corpus__sentence(t, corpus__filler[corpus__below(t, corpus__filler_from[6])]);
    return corpus__put(t);
}
static int corpus__line_distract(corpus__talk *t) {
    corpus__sentence(t, corpus__distract[corpus__below(t, 4)]);
    return corpus__put(t);
}
static int corpus__line_session(corpus__talk *t) {
    t->topic = (t->topic + 1 + corpus__below(t, CORPUS_TOPICS - 1)) % CORPUS_TOPICS;
    t->n = t->n_answer = 0;
    corpus__w(t, CORPUS__SESSION);
    corpus__mark(t, ':');
    corpus__w(t, CORPUS__TOPIC + t->topic * CORPUS__TOPIC_WORDS);
    corpus__w(t, CORPUS__STOP);
    return corpus__put(t);
}

/* A value that the stream may give to the fact, other than `not_this`. */
static int corpus__pick_value(corpus__talk *t, int fact, int not_this) {
    const int person = fact / CORPUS_KEYS, attr = fact % CORPUS_KEYS;
    int v;
    if (attr >= CORPUS_ATTRS) {
        do v = t->persons[corpus__below(t, t->n_persons)]; while (v == person || v == not_this);
        return v;
    }
    do {
        const int block = corpus__below(t, 4), slot = corpus__held_slot(person, attr, block);
        v = block * 6 + (t->held_out ? slot : (slot + 1 + corpus__below(t, 5)) % 6);
    } while (v == not_this);
    return v;
}
/* "Ana: [now] the city of Mia is Paris." with the value that the fact has. */
static int corpus__line_fact(corpus__talk *t, int fact, int now) {
    corpus__fact *f = &t->fact[fact];
    corpus__speak(t);
    if (now) corpus__w(t, CORPUS_w_now);
    corpus__the(t, fact);
    corpus__w(t, CORPUS_w_is);
    f->at = t->out->n + t->n;
    if (!f->told++) f->first = f->at;
    corpus__w(t, corpus__value_of(t, fact));
    corpus__w(t, CORPUS__STOP);
    return corpus__put(t);
}
static int corpus__tell_new(corpus__talk *t, int fact) {
    t->fact[fact].value = corpus__pick_value(t, fact, -1);
    t->list[t->n_list++] = (short)fact;
    if (fact % CORPUS_KEYS >= CORPUS_ATTRS) t->rel_list[t->n_rel_list++] = (short)fact;
    return corpus__line_fact(t, fact, 0);
}
static int corpus__tell_update(corpus__talk *t, int fact) {
    t->fact[fact].value = corpus__pick_value(t, fact, t->fact[fact].value);
    t->fact[fact].updated = 1;
    return corpus__line_fact(t, fact, 1);
}
/* "Ana: note alpha says w w w w w w w w." : eight different values. */
static int corpus__tell_note(corpus__talk *t) {
    int *w = t->note[t->n_notes], i, j;
    corpus__speak(t);
    corpus__w(t, CORPUS_w_note);
    corpus__w(t, CORPUS__LABEL + t->label[t->n_notes]);
    corpus__w(t, CORPUS_w_says);
    t->note_at[t->n_notes++] = t->out->n + t->n;
    for (i = 0; i < CORPUS_NOTE; i++) {
        do {
            w[i] = CORPUS__VALUE + corpus__below(t, CORPUS_ATTRS * CORPUS_VALUES);
            for (j = 0; w[j] != w[i]; j++) {}
        } while (j < i);
        corpus__w(t, w[i]);
    }
    corpus__w(t, CORPUS__STOP);
    return corpus__put(t);
}

/* Questions: these fill the line only; corpus__put writes it, or it becomes a prompt. */
static void corpus__ask(corpus__talk *t, int kind, int fact) {
    corpus__mark(t, '?');
    t->answer = t->n;
    t->n_answer = 1;
    t->ask.kind = kind;
    t->ask.told = t->fact[fact].at;
    t->ask.person = fact / CORPUS_KEYS;
    t->ask.attr = fact % CORPUS_KEYS;
    t->ask.again = 0;
}
static void corpus__ask_what(corpus__talk *t) {
    corpus__speak(t);
    corpus__w(t, CORPUS_w_what);
    corpus__w(t, CORPUS_w_is);
}
static void corpus__answer(corpus__talk *t, const int *words) {
    int i;
    for (i = 0; i < t->n_answer; i++) corpus__w(t, words[i]);
    corpus__w(t, CORPUS__STOP);
}
static void corpus__ask_fact(corpus__talk *t, int fact) {
    corpus__fact *f = &t->fact[fact];
    const int value = corpus__value_of(t, fact);
    corpus__ask_what(t);
    corpus__the(t, fact);
    corpus__ask(t, f->updated ? CORPUS_UPDATED : f->told > 1 ? CORPUS_TWICE : CORPUS_SINGLE, fact);
    t->ask.again = f->asked++ > 0;
    corpus__answer(t, &value);
}
/* A told attribute of the person that the relation names, or -1. */
static int corpus__step(corpus__talk *t, int relation) {
    const int base = t->fact[relation].value * CORPUS_KEYS;
    const int from = corpus__below(t, CORPUS_ATTRS);
    int i;
    for (i = 0; i < CORPUS_ATTRS; i++) {
        const int fact = base + (from + i) % CORPUS_ATTRS;
        if (t->fact[fact].told) return fact;
    }
    return -1;
}
/* "what is the city of the friend of Mia?" */
static void corpus__ask_chain(corpus__talk *t, int relation, int fact) {
    const int value = corpus__value_of(t, fact);
    corpus__ask_what(t);
    corpus__w(t, CORPUS_w_the);
    corpus__w(t, CORPUS__ATTR + fact % CORPUS_KEYS);
    corpus__w(t, CORPUS_w_of);
    corpus__the(t, relation);
    corpus__ask(t, CORPUS_CHAIN, relation);
    t->ask.told = t->fact[fact].at;
    corpus__answer(t, &value);
}
/* Two attributes, and different ones, so that the attribute can be the answer. */
static int corpus__can_order(int a, int b) {
    return a % CORPUS_KEYS < CORPUS_ATTRS && b % CORPUS_KEYS < CORPUS_ATTRS &&
           a % CORPUS_KEYS != b % CORPUS_KEYS;
}
/* "which was first, the city of Mia or the pet of Leo?" The answer is the attribute. */
static void corpus__ask_order(corpus__talk *t, int a, int b) {
    const int fact = t->fact[a].first < t->fact[b].first ? a : b;
    const int word = CORPUS__ATTR + fact % CORPUS_KEYS;
    corpus__speak(t);
    corpus__w(t, CORPUS_w_which);
    corpus__w(t, CORPUS_w_was);
    corpus__w(t, CORPUS_w_first);
    corpus__mark(t, ',');
    corpus__the(t, a);
    corpus__w(t, CORPUS_w_or);
    corpus__the(t, b);
    corpus__ask(t, CORPUS_ORDER, fact);
    t->ask.told = t->fact[fact].first;
    corpus__answer(t, &word);
}
static void corpus__ask_note(corpus__talk *t, int i) {
    corpus__speak(t);
    corpus__w(t, CORPUS_w_read);
    corpus__w(t, CORPUS_w_note);
    corpus__w(t, CORPUS__LABEL + t->label[i]);
    corpus__ask(t, CORPUS_COPY, 0);
    t->n_answer = CORPUS_NOTE;
    t->ask.told = t->note_at[i];
    t->ask.person = -1;
    t->ask.attr = t->label[i];
    t->ask.again = t->note_asked[i]++ > 0;
    corpus__answer(t, t->note[i]);
}

/* --- training streams ------------------------------------------------------------------------- */

CORPUS__FN const char *corpus_check(const corpus_params *p) {
    const int share[] = { p->update, p->twice, p->chain, p->order, p->copy, p->distract };
    size_t i;
    if (p->length < 2 || p->length > 1 << 24) return "length: 2 to 16777216 tokens";
    if (p->persons < 1 || p->persons > CORPUS_PERSONS) return "persons: 1 to 64";
    if (p->attrs < 1 || p->attrs > CORPUS_ATTRS) return "attrs: 1 to 8";
    if (p->facts < 0) return "facts: 0 (as many as come) or more";
    if (p->filler < 0 || p->filler > 99) return "filler: 0 to 99 per cent";
    if (p->ask < 0 || p->ask > 99) return "ask: 0 to 99 per cent";
    for (i = 0; i < sizeof share / sizeof share[0]; i++)
        if (share[i] < 0 || share[i] > 100)
            return "update, twice, chain, order, copy, distract: 0 to 100 per cent";
    if (p->raw_copy < 0 || p->raw_copy > 8) return "raw_copy: 0 to 8 words";
    if (p->raw_gram != 0 && (p->raw_gram < 2 || p->raw_gram > CORPUS__N - CORPUS__STOP))
        return "raw_gram: 0 (all words), or 2 to the number of words";
    return NULL;
}

/* A fact told once and never changed, or -1: a few tries suffice where there are many. */
static int corpus__find_plain(corpus__talk *t, int relations) {
    int i;
    for (i = 0; i < 8 && t->n_list; i++) {
        const int fact = t->list[corpus__below(t, t->n_list)];
        if (t->fact[fact].told == 1 && (relations || fact % CORPUS_KEYS < CORPUS_ATTRS))
            return fact;
    }
    return -1;
}
/* One telling by the shares; -1 when there is nothing left to tell. `fresh`: new facts allowed. */
static int corpus__tell(corpus__talk *t, const corpus_params *p, int fresh) {
    int r = corpus__below(t, 100), fact;
    if (r < p->update && (fact = corpus__find_plain(t, 0)) >= 0)
        return corpus__tell_update(t, fact);
    r -= p->update;
    if (r >= 0 && r < p->twice && (fact = corpus__find_plain(t, 1)) >= 0)
        return corpus__line_fact(t, fact, 0);
    r -= p->twice;
    if (!fresh) return -1;
    if (r >= 0 && r < p->chain && t->n_rel_deck)
        return corpus__tell_new(t, corpus__draw(t, t->rel_deck, &t->n_rel_deck));
    r -= p->chain;
    if (r >= 0 && r < p->copy && t->n_notes < CORPUS_LABELS) return corpus__tell_note(t);
    return t->n_deck ? corpus__tell_new(t, corpus__draw(t, t->deck, &t->n_deck)) : -1;
}
/* One question by the shares; -1 when nothing can be asked yet. */
static int corpus__question(corpus__talk *t, const corpus_params *p) {
    int r = corpus__below(t, 100), i;
    if (r < p->chain) {
        for (i = 0; i < 8 && t->n_rel_list; i++) {
            const int rel = t->rel_list[corpus__below(t, t->n_rel_list)];
            const int fact = corpus__step(t, rel);
            if (fact >= 0) {
                corpus__ask_chain(t, rel, fact);
                return corpus__put(t);
            }
        }
    }
    r -= p->chain;
    if (r >= 0 && r < p->order) {
        for (i = 0; i < 8 && t->n_list > 1; i++) {
            const int a = t->list[corpus__below(t, t->n_list)];
            const int b = t->list[corpus__below(t, t->n_list)];
            if (corpus__can_order(a, b)) {
                corpus__ask_order(t, a, b);
                return corpus__put(t);
            }
        }
    }
    r -= p->order;
    if (t->n_notes && ((r >= 0 && r < p->copy) || !t->n_list))
        corpus__ask_note(t, corpus__below(t, t->n_notes));
    else if (t->n_list) corpus__ask_fact(t, t->list[corpus__below(t, t->n_list)]);
    else return -1;
    return corpus__put(t);
}

/* Random words, then by turns spans of earlier ones again and new words, so that what followed the
   same words before, at any distance, decides. */
static void corpus__raw(corpus__talk *t, const corpus_params *p) {
    int word[CORPUS__N - CORPUS__STOP];
    const int all = CORPUS__N - CORPUS__STOP;
    const int n = p->raw_gram ? p->raw_gram : all;
    int *ids = t->out->ids, i, k, m;
    for (i = 0; i < all; i++) word[i] = CORPUS__STOP + i;
    for (i = 0; i < n && n < all; i++) {
        const int j = i + corpus__below(t, all - i), v = word[j];
        word[j] = word[i];
        word[i] = v;
    }
    memset(t->out->answer, 0, (size_t)p->length);
    for (i = 1; i < p->length && i < 4 + p->length / 4; i++) ids[i] = word[corpus__below(t, n)];
    while (i < p->length) {
        const int span = 4 + corpus__below(t, 12), from = 1 + corpus__below(t, i - 1);
        for (k = 0; k < span && from + k < i && i + k < p->length; k++) {
            ids[i + k] = ids[from + k];
            t->out->answer[i + k] = (unsigned char)(k >= p->raw_copy);
        }
        i += k;
        for (m = corpus__below(t, 3); m > 0 && i < p->length; m--) ids[i++] = word[corpus__below(t, n)];
    }
    t->out->n = p->length;
}

static int corpus__reserve(corpus_stream *s, int n) {
    if (n > s->cap) {
        int *ids = (int *)realloc(s->ids, (size_t)n * sizeof *ids);
        unsigned char *answer;
        if (!ids) return CORPUS_NO_MEMORY;
        s->ids = ids;
        answer = (unsigned char *)realloc(s->answer, (size_t)n);
        if (!answer) return CORPUS_NO_MEMORY;
        s->answer = answer;
        s->cap = n;
    }
    return CORPUS_OK;
}
CORPUS__FN int corpus_make(corpus_stream *s, const corpus_params *p) {
    corpus__talk t;
    int session = 0, fresh = 0, bad = CORPUS_OK;
    if (corpus_check(p)) return CORPUS_BAD_PARAMETER;
    if (corpus__reserve(s, p->length)) return CORPUS_NO_MEMORY;
    corpus__begin(&t, s, p->length, p->persons, p->attrs, p->held_out, p->seed);
    if (p->raw_copy) {
        corpus__raw(&t, p);
        return CORPUS_OK;
    }
    while (s->n < p->length && !bad) {
        const int known = t.n_list + t.n_notes;
        if (p->filler && s->n >= session) {
            session = s->n + 120 + corpus__below(&t, 240);
            bad = corpus__line_session(&t);
            continue;
        }
        if (corpus__below(&t, 100) < p->distract) {
            bad = corpus__line_distract(&t);
            continue;
        }
        bad = -1; // none of the two that come
        if (corpus__below(&t, 100) >= p->filler) {
            int ask = known && corpus__below(&t, 100) < p->ask;
            // new facts keep pace with the stream where their number is given, and at the start
            // questions with the facts, or the first of them would be asked over and over
            fresh = !p->facts ||
                    (known < p->facts && known <= (int64_t)p->facts * s->n / p->length);
            if (fresh && t.n_deck && known < 8 && s->n_q > 1 + known * p->ask / (100 - p->ask))
                ask = 0;
            if (!ask) bad = corpus__tell(&t, p, fresh);
            if (ask || (bad < 0 && p->ask && !p->filler)) bad = corpus__question(&t, p);
        }
        if (bad < 0) bad = corpus__line_filler(&t);
    }
    return bad;
}
CORPUS__FN void corpus_free(corpus_stream *s) {
    free(s->ids);
    free(s->answer);
    free(s->q);
    memset(s, 0, sizeof *s);
}
CORPUS__FN uint64_t corpus_hash(uint64_t h, const corpus_stream *s) {
    int i, b;
    for (i = 0; i < s->n; i++) {
        for (b = 0; b < 32; b += 8)
            h = (h ^ ((uint32_t)s->ids[i] >> b & 255)) * UINT64_C(0x100000001b3);
        h = (h ^ s->answer[i]) * UINT64_C(0x100000001b3);
    }
    return h;
}

/* --- evaluation ------------------------------------------------------------------------------- */

/* What a suite puts into a context of a given length when the caller leaves it open. */
typedef struct corpus__plan {
    int persons, attrs, facts, questions;
    int updated, twice, relations; /* per cent of the facts */
    int notes;                     /* the facts are notes */
    int asks;                      /* questions asked and answered on the way */
} corpus__plan;

static int corpus__clamp(int v, int lo, int hi) { return v < lo ? lo : v > hi ? hi : v; }
static corpus__plan corpus__plan_of(const corpus_eval_params *p) {
    corpus__plan a;
    memset(&a, 0, sizeof a);
    a.persons = p->persons ? p->persons : p->suite == CORPUS_CONV ? 24 : CORPUS_PERSONS;
    a.attrs = p->attrs ? p->attrs : CORPUS_ATTRS;
    switch (p->suite) {
    case CORPUS_CONV:
        a.facts = corpus__clamp(p->ctx / 64, 2, 40);
        a.updated = 25;
        a.twice = 15;
        a.relations = 12;
        a.asks = p->ctx / 100;
        break;
    case CORPUS_NEEDLE: a.facts = corpus__clamp(p->ctx / 160, 0, 40); break;
    case CORPUS_MULTI: a.facts = corpus__clamp(p->ctx / 32, 2, 64); break;
    case CORPUS_ORDERS: a.facts = corpus__clamp(p->ctx / 64, 3, 40); break;
    default: a.facts = corpus__clamp(p->ctx / 128, 1, CORPUS_LABELS); a.notes = 1;
    }
    a.facts = corpus__clamp(a.facts, 0, (p->ctx - 80) / 14);
    if (!a.notes) a.facts = corpus__clamp(a.facts, 0, a.persons * a.attrs);
    if (p->facts) a.facts = p->facts;
    // some facts of a conversation are told, and asked on the way, but not asked at the end
    a.questions = p->suite == CORPUS_CONV ? (a.facts * 2 + 2) / 3 : a.facts;
    if (p->questions) a.questions = p->questions;
    return a;
}
CORPUS__FN const char *corpus_test_check(const corpus_eval_params *p) {
    corpus__plan a;
    if (p->suite < 0 || p->suite >= CORPUS_SUITES) return "suite: unknown";
    if (p->ctx < 128 || p->ctx > 1 << 24) return "ctx: 128 to 16777216 tokens";
    if (p->questions < 0 || p->facts < 0) return "questions, facts: 0 (the suite's choice) or more";
    if (p->depth < 0 || p->depth > 1000) return "depth: 0 to 1000 per mille";
    if (p->persons < 0 || p->persons > CORPUS_PERSONS)
        return "persons: 1 to 64, 0: the suite's choice";
    if (p->attrs < 0 || p->attrs > CORPUS_ATTRS) return "attrs: 1 to 8, 0: the suite's choice";
    a = corpus__plan_of(p);
    if (p->suite == CORPUS_PPL) return NULL;
    if (p->facts > CORPUS_PERSONS * CORPUS_ATTRS || a.facts * 14 + 80 > p->ctx)
        return "facts: they do not fit in ctx (14 tokens each and 80)";
    if (a.facts > (a.notes ? (int)CORPUS_LABELS : a.persons * a.attrs))
        return a.notes ? "facts: there are 16 notes" : "facts: more than persons x attrs";
    if (p->suite == CORPUS_ORDERS && (a.attrs < 2 || a.facts < 2))
        return "order: needs two facts and two attrs";
    return NULL;
}

/* What has to be told, in the order of telling: a fact, or -1: a note. A fact that stands twice is
   updated or repeated the second time. */
typedef struct corpus__script {
    short event[2 * CORPUS_PERSONS * CORPUS_ATTRS];
    unsigned char update[CORPUS_PERSONS * CORPUS_KEYS]; /* at its second time */
    unsigned char tested[CORPUS_PERSONS * CORPUS_KEYS];
    short item[CORPUS_PERSONS * CORPUS_ATTRS]; /* facts in random order, to be asked */
    int n, n_item, needle;
} corpus__script;

static void corpus__shuffle(corpus__talk *t, short *v, int n) {
    int i;
    for (i = n - 1; i > 0; i--) {
        const int j = corpus__below(t, i + 1);
        const short x = v[i];
        v[i] = v[j];
        v[j] = x;
    }
}
static void corpus__write_script(corpus__talk *t, const corpus__plan *a, corpus__script *s,
                                 int needle) {
    int i, relations = t->n_rel_deck ? a->facts * a->relations / 100 : 0;
    memset(s, 0, sizeof *s);
    s->needle = needle ? corpus__draw(t, t->deck, &t->n_deck) : -1;
    for (i = 0; i < a->facts; i++) {
        int fact;
        if (a->notes) {
            s->event[s->n++] = -1;
            continue;
        }
        do {
            if (!t->n_deck) return; // a needle among few persons: others would be about the same
            fact = relations > 0 ? corpus__draw(t, t->rel_deck, &t->n_rel_deck)
                                 : corpus__draw(t, t->deck, &t->n_deck);
        } while (needle && (fact % CORPUS_KEYS == s->needle % CORPUS_KEYS ||
                            fact / CORPUS_KEYS == s->needle / CORPUS_KEYS));
        // the first two attributes differ where there is a choice: order questions need that
        while (i == 1 && t->n_attrs > 1 && relations <= 0 && !needle &&
               fact % CORPUS_KEYS == s->item[0] % CORPUS_KEYS) {
            t->deck[t->n_deck++] = (short)fact;
            fact = corpus__draw(t, t->deck, &t->n_deck);
        }
        s->item[s->n_item++] = s->event[s->n++] = (short)fact;
        if (relations-- <= 0) {
            const int r = corpus__below(t, 100);
            if (r < a->updated + a->twice) s->event[s->n++] = (short)fact;
            s->update[fact] = r < a->updated;
        }
    }
    corpus__shuffle(t, s->event, s->n);
    corpus__shuffle(t, s->item, s->n_item);
    for (i = 0; i < s->n_item && i < a->questions; i++) s->tested[s->item[i]] = 1;
}
/* The next event. A relation names a person of whom something is told, so that two steps work. */
static int corpus__tell_event(corpus__talk *t, const corpus__script *s, int fact) {
    int i;
    if (fact < 0) return corpus__tell_note(t);
    if (t->fact[fact].told)
        return s->update[fact] ? corpus__tell_update(t, fact) : corpus__line_fact(t, fact, 0);
    if (fact % CORPUS_KEYS < CORPUS_ATTRS) return corpus__tell_new(t, fact);
    t->fact[fact].value = corpus__pick_value(t, fact, -1);
    for (i = 0; i < 64; i++) {
        const int other = s->item[corpus__below(t, s->n_item)], person = other / CORPUS_KEYS;
        if (other % CORPUS_KEYS < CORPUS_ATTRS && person != fact / CORPUS_KEYS) {
            t->fact[fact].value = person;
            break;
        }
    }
    t->list[t->n_list++] = (short)fact;
    return corpus__line_fact(t, fact, 0);
}
/* A question on the way: mostly about facts that are not asked at the end. */
static int corpus__chat(corpus__talk *t, const corpus__script *s) {
    int i, fact = t->list[corpus__below(t, t->n_list)], step;
    const int about_tested = corpus__below(t, 4) == 0;
    for (i = 0; i < 16 && s->tested[fact] != about_tested; i++)
        fact = t->list[corpus__below(t, t->n_list)];
    step = fact % CORPUS_KEYS >= CORPUS_ATTRS && corpus__below(t, 2) ? corpus__step(t, fact) : -1;
    if (step >= 0) {
        corpus__ask_chain(t, fact, step);
        t->fact[fact].asked++;
    } else corpus__ask_fact(t, fact);
    return corpus__put(t);
}
/* Filler that ends exactly at the end: a line has 7 to 12 tokens, so 13 must never be left. */
static int corpus__finish(corpus__talk *t) {
    int bad = CORPUS_OK;
    while (t->out->n < t->limit && !bad) {
        const int room = t->limit - t->out->n;
        int words, left, from;
        do {
            words = 4 + corpus__below(t, 6);
            left = room - words - 3;
        } while (left < 0 || (left > 0 && left < 7) || left == 13);
        from = corpus__filler_from[words - 4];
        from += corpus__below(t, corpus__filler_from[words - 3] - from);
        corpus__sentence(t, corpus__filler[from]);
        bad = corpus__put(t);
    }
    return bad;
}
/* The context: events spread evenly, talk between them. */
static int corpus__play(corpus__talk *t, const corpus__script *s, int asks, int depth) {
    corpus_stream *o = t->out;
    const int span = t->limit - 60, needle_at = (int)((int64_t)span * depth / 1000);
    int bad = CORPUS_OK, k = 0, asked = 0, session = 0, needle = s->needle;
    int64_t next = 0, next_ask = 0;
    if (s->n) next = (int64_t)span * corpus__below(t, 256) / 256 / s->n;
    while (!bad && t->limit - o->n >= 40) {
        // what is left to tell comes first where room gets scarce
        const int scarce = t->limit - o->n - 14 * (s->n - k) < 80;
        if (needle >= 0 && o->n > 1 && o->n + 4 >= needle_at) {
            bad = corpus__tell_new(t, needle);
            needle = -1;
        } else if (o->n >= session && !scarce) {
            session = o->n + 120 + corpus__below(t, 240);
            bad = corpus__line_session(t);
        } else if (k < s->n && (scarce || o->n >= next)) {
            bad = corpus__tell_event(t, s, s->event[k++]);
            next = (int64_t)span * (256 * k + corpus__below(t, 256)) / 256 / s->n;
        } else if (asked < asks && t->n_list && o->n >= next_ask && !scarce) {
            bad = corpus__chat(t, s);
            asked++;
            next_ask = (int64_t)span * (256 * (int64_t)asked + corpus__below(t, 256)) / 256 / asks;
        } else bad = corpus__line_filler(t);
    }
    return bad ? bad : corpus__finish(t);
}

/* The question in the line becomes a prompt. */
static void corpus__prompt(corpus__talk *t, corpus_prompt *q, int asked) {
    memset(q, 0, sizeof *q);
    q->n = t->answer;
    q->n_answer = t->n_answer;
    memcpy(q->ids, t->w, (size_t)q->n * sizeof *t->w);
    memcpy(q->answer, t->w + t->answer, (size_t)q->n_answer * sizeof *t->w);
    q->kind = t->ask.kind;
    q->person = t->ask.person;
    q->attr = t->ask.attr;
    q->told = t->ask.told;
    q->asked = asked;
}
/* Two facts whose order can be asked, in random order; corpus__write_script saw to it that there
   are such. */
static void corpus__order_pair(corpus__talk *t, int *a, int *b) {
    do {
        *a = t->list[corpus__below(t, t->n_list)];
        *b = t->list[corpus__below(t, t->n_list)];
    } while (!corpus__can_order(*a, *b));
}
static void corpus__prompts(corpus_test *o, corpus__talk *t, const corpus__script *s, int suite,
                            int n) {
    int i, a, b;
    for (i = 0; i < n; i++) {
        int fact = s->needle, asked = 0;
        if (suite == CORPUS_COPIES) {
            if (i == t->n_notes) return;
            corpus__ask_note(t, i);
        } else if (suite == CORPUS_ORDERS) {
            corpus__order_pair(t, &a, &b);
            corpus__ask_order(t, a, b);
        } else {
            if (i == (suite == CORPUS_NEEDLE ? 1 : s->n_item)) return;
            if (suite != CORPUS_NEEDLE) fact = s->item[i];
            asked = t->fact[fact].asked;
            a = fact % CORPUS_KEYS < CORPUS_ATTRS ? -1 : corpus__step(t, fact);
            if (a < 0) corpus__ask_fact(t, fact);
            else corpus__ask_chain(t, fact, a);
        }
        corpus__prompt(t, &o->q[o->n_q++], asked);
    }
}
static int corpus__perplexity(corpus_test *o, const corpus_eval_params *p) {
    corpus_params c;
    memset(&c, 0, sizeof c);
    c.length = p->ctx;
    c.persons = p->persons ? p->persons : 24;
    c.attrs = p->attrs ? p->attrs : CORPUS_ATTRS;
    c.facts = p->facts;
    c.filler = 60;
    c.ask = 30;
    c.update = 15;
    c.twice = c.chain = c.order = c.copy = 10;
    c.held_out = 1;
    c.seed = p->seed;
    return corpus_make(&o->stream, &c);
}
CORPUS__FN int corpus_test_make(corpus_test *o, const corpus_eval_params *p) {
    corpus__talk t;
    corpus__script s;
    corpus__plan a;
    int bad;
    if (corpus_test_check(p)) return CORPUS_BAD_PARAMETER;
    o->n = o->n_q = 0;
    a = corpus__plan_of(p);
    if (p->suite == CORPUS_PPL) {
        bad = corpus__perplexity(o, p);
        a.questions = 0;
    } else {
        if (p->suite == CORPUS_NEEDLE) a.questions = 1;
        if (a.questions > o->cap_q) {
            corpus_prompt *q =
                (corpus_prompt *)realloc(o->q, (size_t)a.questions * sizeof *o->q);
            if (!q) return CORPUS_NO_MEMORY;
            o->q = q;
            o->cap_q = a.questions;
        }
        if (corpus__reserve(&o->stream, p->ctx)) return CORPUS_NO_MEMORY;
        corpus__begin(&t, &o->stream, p->ctx, a.persons, a.attrs, 1, p->seed);
        t.key += (uint64_t)p->suite; // the suites of one seed differ
        corpus__write_script(&t, &a, &s, p->suite == CORPUS_NEEDLE);
        bad = corpus__play(&t, &s, a.asks, p->depth);
        if (!bad) corpus__prompts(o, &t, &s, p->suite, a.questions);
    }
    o->ids = o->stream.ids;
    o->n = o->stream.n;
    return bad;
}
CORPUS__FN void corpus_test_free(corpus_test *o) {
    corpus_free(&o->stream);
    free(o->q);
    memset(o, 0, sizeof *o);
}
#endif
