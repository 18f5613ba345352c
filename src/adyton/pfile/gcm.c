/*
 * The hot loop of protected files: seal and open runs of 4096-byte nodes with AES-128-GCM, over OpenSSL.
 *
 * Every node has its own key, the IV is always zero, there is no additional data.  A key must therefore
 * never seal two contents.  seal_run() draws on every call, keeps nothing of it for a later call (so a fork
 * inherits none), and takes no key from its caller:
 *
 *     first, second = 16 bytes each from the kernel; 16 from the processor (RDRAND) are added to the second
 *     key           = AES-128(second, place of the node in the run)
 *
 * The kernel's bytes alone may come twice: in a clone of a virtual machine whose kernel does not know that it is one.
 * The processor's do not.  A snapshot within a call is harmless, for the plaintext is in memory by then: every clone
 * seals the same content.  Where the processor gives nothing, the plaintext decides on its key with the kernel's bytes,
 * which is a third slower.  If these come twice then, another content has another key all the same, and what is seen
 * is only that a content is the same:
 *
 *     key           = AES-128(second, GMAC(first, IV = place of the node in the run, data = its plaintext))
 *
 * A slot is the 16-byte key followed by the 16-byte tag, as it stands in the parent node.
 * The output buffer may be exactly the input buffer, or must not overlap it.
 */

#include "gcm.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#if defined(__x86_64__) && !defined(WITHOUT_RDRAND) /* a test builds it without */
#define HAVE_RDRAND
#include <cpuid.h>
#include <immintrin.h>
#define RDRAND_TRIES 10
static int has_rdrand;
#endif

#define IV 12

/* One thread's ciphers: of the nodes, of GMAC, and of the keys. */
struct contexts {
    EVP_CIPHER_CTX *node, *mac, *block;
};

static const unsigned char zero_iv[IV];
static EVP_CIPHER *aes_128_gcm, *aes_128_ecb;
static pthread_key_t contexts_of_thread;

static void free_contexts(void *its)
{
    struct contexts *contexts = its;
    EVP_CIPHER_CTX_free(contexts->node);
    EVP_CIPHER_CTX_free(contexts->mac);
    EVP_CIPHER_CTX_free(contexts->block);
    free(contexts);
}

static EVP_CIPHER_CTX *new_context(const EVP_CIPHER *cipher)
{
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    if (context == NULL || EVP_EncryptInit_ex2(context, cipher, NULL, NULL, NULL) == 1)
        return context;
    EVP_CIPHER_CTX_free(context);
    return NULL;
}

/* The contexts of this thread, freed when it ends; NULL when memory is short. */
static struct contexts *own_contexts(void)
{
    struct contexts *contexts = pthread_getspecific(contexts_of_thread);
    if (contexts != NULL)
        return contexts;
    contexts = malloc(sizeof *contexts);
    if (contexts == NULL)
        return NULL;
    *contexts = (struct contexts){new_context(aes_128_gcm), new_context(aes_128_gcm), new_context(aes_128_ecb)};
    if (contexts->node != NULL && contexts->mac != NULL && contexts->block != NULL
        && pthread_setspecific(contexts_of_thread, contexts) == 0)
        return contexts;
    free_contexts(contexts);
    return NULL;
}

/* Fill `out` from the kernel; 0, or the errno. */
static int draw(unsigned char *out, size_t size)
{
    while (size > 0) {
        ssize_t got = getrandom(out, size, 0);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return errno;
        }
        out += got;
        size -= (size_t)got;
    }
    return 0;
}

#ifdef HAVE_RDRAND
/* Add 16 bytes of the processor's own generator to `key`; 0 where it has none, or gives nothing now. */
__attribute__((target("rdrnd"))) static int add_from_processor(unsigned char *key)
{
    unsigned long long words[2];
    for (int i = 0; i < 2; i++) {
        int tries = RDRAND_TRIES;
        while (has_rdrand && tries > 0 && !_rdrand64_step(&words[i]))
            tries--;
        if (!has_rdrand || tries == 0)
            return 0;
    }
    if (words[0] == words[1]) /* a known fault: all bits set, every time */
        return 0;
    for (int i = 0; i < KEY; i++)
        key[i] ^= ((unsigned char *)words)[i];
    OPENSSL_cleanse(words, sizeof words);
    return 1;
}

static int look_for_rdrand(void)
{
    unsigned int eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_RDRND) != 0;
}
#else
static int add_from_processor(unsigned char *key)
{
    (void)key;
    return 0;
}
#endif

static OSSL_PARAM tag_to(unsigned char *tag)
{
    return OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, tag, TAG);
}

/* The GMAC of a node's plaintext under the first key, with its place as the IV; 0 where OpenSSL fails. */
static int mac(const struct contexts *own, const unsigned char *plain, const unsigned char *place, unsigned char *tag)
{
    OSSL_PARAM get_tag[2] = {tag_to(tag), OSSL_PARAM_construct_end()};
    int size = 0;
    return EVP_EncryptInit_ex2(own->mac, NULL, NULL, place, NULL) == 1
        && EVP_EncryptUpdate(own->mac, NULL, &size, plain, NODE) == 1
        && EVP_EncryptFinal_ex(own->mac, tag, &size) == 1
        && size == 0
        && EVP_CIPHER_CTX_get_params(own->mac, get_tag) == 1;
}

/* The key of a node of the run, of its plaintext too unless the processor's bytes are in; 0 where OpenSSL fails. */
static int derive_key(const struct contexts *own, const unsigned char *plain, uint64_t node, int unrepeated,
                      unsigned char *key)
{
    unsigned char block[TAG] = {0};
    int size = 0, derived;
    for (int i = 0; i < 8; i++)
        block[i] = (unsigned char)(node >> 8 * i);
    derived = (unrepeated || mac(own, plain, block, block))
        && EVP_EncryptUpdate(own->block, key, &size, block, sizeof block) == 1
        && size == KEY;
    OPENSSL_cleanse(block, sizeof block);
    return derived;
}

static int seal_node(const struct contexts *own, const unsigned char *plain, unsigned char *cipher,
                     const unsigned char *key, unsigned char *tag)
{
    OSSL_PARAM get_tag[2] = {tag_to(tag), OSSL_PARAM_construct_end()};
    int size = 0;
    return EVP_EncryptInit_ex2(own->node, NULL, key, zero_iv, NULL) == 1
        && EVP_EncryptUpdate(own->node, cipher, &size, plain, NODE) == 1
        && size == NODE
        && EVP_EncryptFinal_ex(own->node, cipher + NODE, &size) == 1
        && size == 0
        && EVP_CIPHER_CTX_get_params(own->node, get_tag) == 1;
}

int seal_run(const unsigned char *plain, unsigned char *cipher, unsigned char *slots, ptrdiff_t count)
{
    unsigned char drawn[2 * KEY], key[KEY];
    struct contexts *own = own_contexts();
    int status, unrepeated;
    if (own == NULL)
        return NO_MEMORY;
    if (count == 0)
        return DONE;
    status = draw(drawn, sizeof drawn);
    unrepeated = add_from_processor(drawn + KEY);
    if (status == DONE
        && (EVP_EncryptInit_ex2(own->mac, NULL, drawn, zero_iv, NULL) != 1
            || EVP_EncryptInit_ex2(own->block, NULL, drawn + KEY, NULL, NULL) != 1
            || EVP_CIPHER_CTX_set_padding(own->block, 0) != 1))
        status = NO_CIPHER;
    for (ptrdiff_t node = 0; node < count && status == DONE; node++) {
        unsigned char *slot = slots + node * SLOT;
        if (!derive_key(own, plain + node * NODE, (uint64_t)node, unrepeated, key)
            || !seal_node(own, plain + node * NODE, cipher + node * NODE, key, slot + KEY))
            status = NO_CIPHER;
        else
            memcpy(slot, key, KEY);
    }
    OPENSSL_cleanse(drawn, sizeof drawn);
    OPENSSL_cleanse(key, sizeof key);
    if (status != DONE) {
        OPENSSL_cleanse(slots, (size_t)count * SLOT);
        OPENSSL_cleanse(cipher, (size_t)count * NODE); /* it may be the caller's plaintext buffer: gone either way */
    }
    return status;
}

int open_run(const unsigned char *cipher, const unsigned char *slots, unsigned char *plain, ptrdiff_t count,
             ptrdiff_t *bad)
{
    struct contexts *own = own_contexts();
    int status = DONE;
    *bad = -1;
    if (own == NULL)
        return NO_MEMORY;
    for (ptrdiff_t node = 0; node < count && *bad < 0 && status == DONE; node++) {
        const unsigned char *slot = slots + node * SLOT;
        unsigned char tag[TAG];
        int size = 0;
        memcpy(tag, slot + KEY, TAG);
        OSSL_PARAM set_tag[2] = {tag_to(tag), OSSL_PARAM_construct_end()};
        if (EVP_DecryptInit_ex2(own->node, NULL, slot, zero_iv, set_tag) != 1
            || EVP_DecryptUpdate(own->node, plain + node * NODE, &size, cipher + node * NODE, NODE) != 1
            || size != NODE)
            status = NO_CIPHER;
        else if (EVP_DecryptFinal_ex(own->node, plain + node * NODE + NODE, &size) != 1)
            *bad = node;
        else if (size != 0)
            status = NO_CIPHER;
    }
    if (*bad >= 0 || status != DONE)
        OPENSSL_cleanse(plain, (size_t)count * NODE);
    return status;
}

int prepare_gcm(void)
{
    if (aes_128_ecb != NULL)
        return DONE;
#ifdef HAVE_RDRAND
    has_rdrand = look_for_rdrand();
#endif
    aes_128_gcm = EVP_CIPHER_fetch(NULL, "AES-128-GCM", NULL);
    aes_128_ecb = EVP_CIPHER_fetch(NULL, "AES-128-ECB", NULL);
    return aes_128_gcm == NULL || aes_128_ecb == NULL || pthread_key_create(&contexts_of_thread, free_contexts) != 0
        ? NO_CIPHER
        : DONE;
}
