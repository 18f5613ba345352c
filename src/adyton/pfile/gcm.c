/*
 * The hot loop of protected files: seal and open runs of 4096-byte nodes with AES-128-GCM, over OpenSSL.
 *
 * Every node has its own key, the IV is always zero, there is no additional data.  A key must therefore
 * never seal twice: seal_run() draws its keys from the kernel on every call, in bulk, keeps none for a
 * later call (so a fork inherits none), and takes none from its caller.  A slot is the 16-byte key
 * followed by the 16-byte tag, as it stands in the parent node.
 *
 * The output buffer may be exactly the input buffer, or must not overlap it.
 */

#include "gcm.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/random.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#define KEYS_PER_DRAW 256

static const unsigned char zero_iv[12];
static EVP_CIPHER *aes_128_gcm;
static pthread_key_t context_of_thread;

static void free_context(void *context)
{
    EVP_CIPHER_CTX_free(context);
}

/* One cipher context per thread, freed when the thread ends; NULL when memory is short. */
static EVP_CIPHER_CTX *own_context(void)
{
    EVP_CIPHER_CTX *context = pthread_getspecific(context_of_thread);
    if (context != NULL)
        return context;
    context = EVP_CIPHER_CTX_new();
    if (context == NULL)
        return NULL;
    if (EVP_EncryptInit_ex2(context, aes_128_gcm, NULL, NULL, NULL) != 1
        || pthread_setspecific(context_of_thread, context) != 0) {
        EVP_CIPHER_CTX_free(context);
        return NULL;
    }
    return context;
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

int seal_run(const unsigned char *plain, unsigned char *cipher, unsigned char *slots, ptrdiff_t count)
{
    unsigned char keys[KEYS_PER_DRAW * KEY];
    int status = DONE;
    EVP_CIPHER_CTX *context = own_context();
    if (context == NULL)
        return NO_MEMORY;
    for (ptrdiff_t first = 0; first < count && status == DONE; first += KEYS_PER_DRAW) {
        ptrdiff_t run = count - first < KEYS_PER_DRAW ? count - first : KEYS_PER_DRAW;
        status = draw(keys, (size_t)run * KEY);
        for (ptrdiff_t i = 0; i < run && status == DONE; i++) {
            ptrdiff_t node = first + i;
            unsigned char *slot = slots + node * SLOT;
            OSSL_PARAM get_tag[2] = {
                OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, slot + KEY, TAG),
                OSSL_PARAM_construct_end(),
            };
            int size = 0;
            if (EVP_EncryptInit_ex2(context, NULL, keys + i * KEY, zero_iv, NULL) != 1
                || EVP_EncryptUpdate(context, cipher + node * NODE, &size, plain + node * NODE, NODE) != 1
                || size != NODE
                || EVP_EncryptFinal_ex(context, cipher + node * NODE + NODE, &size) != 1
                || size != 0
                || EVP_CIPHER_CTX_get_params(context, get_tag) != 1)
                status = NO_CIPHER;
            else
                memcpy(slot, keys + i * KEY, KEY);
        }
    }
    OPENSSL_cleanse(keys, sizeof keys);
    if (status != DONE) {
        OPENSSL_cleanse(slots, (size_t)count * SLOT);
        OPENSSL_cleanse(cipher, (size_t)count * NODE); /* it may be the caller's plaintext buffer: gone either way */
    }
    return status;
}

int open_run(const unsigned char *cipher, const unsigned char *slots, unsigned char *plain, ptrdiff_t count,
                    ptrdiff_t *bad)
{
    EVP_CIPHER_CTX *context = own_context();
    int status = DONE;
    *bad = -1;
    if (context == NULL)
        return NO_MEMORY;
    for (ptrdiff_t node = 0; node < count && *bad < 0 && status == DONE; node++) {
        const unsigned char *slot = slots + node * SLOT;
        unsigned char tag[TAG];
        int size = 0;
        memcpy(tag, slot + KEY, TAG);
        OSSL_PARAM set_tag[2] = {
            OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, tag, TAG),
            OSSL_PARAM_construct_end(),
        };
        if (EVP_DecryptInit_ex2(context, NULL, slot, zero_iv, set_tag) != 1
            || EVP_DecryptUpdate(context, plain + node * NODE, &size, cipher + node * NODE, NODE) != 1
            || size != NODE)
            status = NO_CIPHER;
        else if (EVP_DecryptFinal_ex(context, plain + node * NODE + NODE, &size) != 1)
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
    if (aes_128_gcm != NULL)
        return DONE;
    aes_128_gcm = EVP_CIPHER_fetch(NULL, "AES-128-GCM", NULL);
    return aes_128_gcm == NULL || pthread_key_create(&context_of_thread, free_context) != 0 ? NO_CIPHER : DONE;
}
