/* The physical limit beside Adyton's figures: AES-128-GCM over OpenSSL, 4096 bytes at a time, a fresh key each. */

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

enum { NODE = 4096, KEY = 16, TAG = 16 };

struct share {
    unsigned char *from, *to, *keys, *tags;
    size_t nodes;
    int opening, failed;
};

static void *work(void *argument)
{
    struct share *share = argument;
    static const unsigned char iv[12];
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, "AES-128-GCM", NULL);
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    EVP_EncryptInit_ex2(context, cipher, NULL, NULL, NULL);
    for (size_t i = 0; i < share->nodes; i++) {
        unsigned char *tag = share->tags + i * TAG;
        OSSL_PARAM params[2] = { OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, tag, TAG),
                                 OSSL_PARAM_construct_end() };
        int size;
        if (share->opening) {
            if (EVP_DecryptInit_ex2(context, NULL, share->keys + i * KEY, iv, params) != 1
                || EVP_DecryptUpdate(context, share->to + i * NODE, &size, share->from + i * NODE, NODE) != 1
                || EVP_DecryptFinal_ex(context, share->to + i * NODE, &size) != 1)
                share->failed = 1;
        } else if (EVP_EncryptInit_ex2(context, NULL, share->keys + i * KEY, iv, NULL) != 1
                   || EVP_EncryptUpdate(context, share->to + i * NODE, &size, share->from + i * NODE, NODE) != 1
                   || EVP_EncryptFinal_ex(context, share->to + i * NODE, &size) != 1
                   || EVP_CIPHER_CTX_get_params(context, params) != 1)
            share->failed = 1;
    }
    EVP_CIPHER_CTX_free(context);
    EVP_CIPHER_free(cipher);
    return NULL;
}

static double run(int opening, int threads, size_t nodes, unsigned char *from, unsigned char *to, unsigned char *keys,
                  unsigned char *tags)
{
    pthread_t ids[64];
    struct share shares[64];
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int t = 0; t < threads; t++) {
        size_t first = nodes * (size_t)t / (size_t)threads, last = nodes * (size_t)(t + 1) / (size_t)threads;
        shares[t] = (struct share){ from + first * NODE, to + first * NODE, keys + first * KEY, tags + first * TAG,
                                    last - first, opening, 0 };
        pthread_create(&ids[t], NULL, work, &shares[t]);
    }
    int failed = 0;
    for (int t = 0; t < threads; t++) {
        pthread_join(ids[t], NULL);
        failed |= shares[t].failed;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    return failed ? -1 : (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
}

/* Seconds for one pass over `nodes` nodes of sealing (and, to `opened`, of opening them again); -1 on failure. */
int limit(int threads, size_t nodes, double *sealed, double *opened)
{
    unsigned char *plain = malloc(nodes * NODE), *cipher = malloc(nodes * NODE);
    unsigned char *keys = malloc(nodes * KEY), *tags = malloc(nodes * TAG);
    if (threads < 1 || threads > 64 || !plain || !cipher || !keys || !tags)
        return -1;
    memset(plain, 1, nodes * NODE);
    memset(cipher, 2, nodes * NODE);
    memset(tags, 0, nodes * TAG);
    for (size_t done = 0; done < nodes * KEY;) {
        ssize_t got = getrandom(keys + done, nodes * KEY - done, 0);
        if (got < 0)
            return -1;
        done += (size_t)got;
    }
    *sealed = run(0, threads, nodes, plain, cipher, keys, tags);
    *opened = run(1, threads, nodes, cipher, plain, keys, tags);
    free(plain);
    free(cipher);
    free(keys);
    free(tags);
    return *sealed < 0 || *opened < 0 ? -1 : 0;
}
