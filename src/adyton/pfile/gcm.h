/* Sealing and opening runs of nodes: what gcm.c offers to the extension modules that are built with it. */

#ifndef ADYTON_GCM_H
#define ADYTON_GCM_H

#include <stddef.h>

#define NODE 4096
#define KEY 16
#define TAG 16
#define SLOT (KEY + TAG)

enum { DONE = 0, NO_MEMORY = -1, NO_CIPHER = -2 };

/* To be called once, before the others; DONE or NO_CIPHER. */
int prepare_gcm(void);

/* DONE, a code above, or a positive errno of getrandom; where it is not DONE, no slot and no output is left. */
int seal_run(const unsigned char *plain, unsigned char *cipher, unsigned char *slots, ptrdiff_t count);

/* DONE with *bad the first node whose tag is wrong (or -1), or a code above; then the whole output is wiped. */
int open_run(const unsigned char *cipher, const unsigned char *slots, unsigned char *plain, ptrdiff_t count,
             ptrdiff_t *bad);

#endif
