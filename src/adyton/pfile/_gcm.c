/*
 * The hot loop of protected files: seal and open runs of 4096-byte nodes with AES-128-GCM, over OpenSSL.
 *
 * Every node has its own key, the IV is always zero, there is no additional data.  A key must therefore
 * never seal twice: seal_nodes() draws its keys from the kernel on every call, in bulk, keeps none for a
 * later call (so a fork inherits none), and takes none from its caller.  A slot is the 16-byte key
 * followed by the 16-byte tag, as it stands in the parent node.
 *
 * The output buffer may be exactly the input buffer, or must not overlap it.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/random.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#define NODE 4096
#define KEY 16
#define TAG 16
#define SLOT (KEY + TAG)
#define RELEASE_GIL_FROM 4 /* nodes; handing the lock over costs about as much as sealing one */
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

enum { DONE = 0, NO_MEMORY = -1, NO_CIPHER = -2 };

/* 0, a code above, or a positive errno of getrandom. */
static int seal_run(const unsigned char *plain, unsigned char *cipher, unsigned char *slots, Py_ssize_t count)
{
    unsigned char keys[KEYS_PER_DRAW * KEY];
    int status = DONE;
    EVP_CIPHER_CTX *context = own_context();
    if (context == NULL)
        return NO_MEMORY;
    for (Py_ssize_t first = 0; first < count && status == DONE; first += KEYS_PER_DRAW) {
        Py_ssize_t run = count - first < KEYS_PER_DRAW ? count - first : KEYS_PER_DRAW;
        status = draw(keys, (size_t)run * KEY);
        for (Py_ssize_t i = 0; i < run && status == DONE; i++) {
            Py_ssize_t node = first + i;
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

/* DONE with *bad the first node whose tag is wrong (or -1); on a wrong tag the whole output is wiped. */
static int open_run(const unsigned char *cipher, const unsigned char *slots, unsigned char *plain, Py_ssize_t count,
                    Py_ssize_t *bad)
{
    EVP_CIPHER_CTX *context = own_context();
    int status = DONE;
    *bad = -1;
    if (context == NULL)
        return NO_MEMORY;
    for (Py_ssize_t node = 0; node < count && *bad < 0 && status == DONE; node++) {
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

static PyObject *raise_for(int status)
{
    if (status == NO_MEMORY)
        return PyErr_NoMemory();
    if (status > 0) {
        errno = status;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    PyErr_SetString(PyExc_RuntimeError, "OpenSSL failed at AES-128-GCM");
    return NULL;
}

/* The number of nodes of three buffers that belong together, or -1 with ValueError set. */
static Py_ssize_t count_nodes(const Py_buffer *from, const Py_buffer *to, const Py_buffer *slots)
{
    Py_ssize_t count = from->len / NODE;
    const char *a = from->buf, *b = to->buf, *s = slots->buf;
    if (from->len % NODE != 0 || to->len != from->len || slots->len != count * SLOT) {
        PyErr_Format(PyExc_ValueError, "sizes do not belong together: %zd bytes in, %zd bytes out, %zd bytes of slots",
                     from->len, to->len, slots->len);
        return -1;
    }
    if ((a != b && a < b + to->len && b < a + from->len) || (s < b + to->len && b < s + slots->len)
        || (s < a + from->len && a < s + slots->len)) {
        PyErr_SetString(PyExc_ValueError, "the buffers overlap");
        return -1;
    }
    return count;
}

static PyObject *seal_nodes(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer plain, cipher, slots;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*w*w*:seal_nodes", &plain, &cipher, &slots))
        return NULL;
    Py_ssize_t count = count_nodes(&plain, &cipher, &slots);
    if (count >= 0) {
        int status;
        if (count < RELEASE_GIL_FROM) {
            status = seal_run(plain.buf, cipher.buf, slots.buf, count);
        } else {
            Py_BEGIN_ALLOW_THREADS
            status = seal_run(plain.buf, cipher.buf, slots.buf, count);
            Py_END_ALLOW_THREADS
        }
        result = status == DONE ? Py_NewRef(Py_None) : raise_for(status);
    }
    PyBuffer_Release(&plain);
    PyBuffer_Release(&cipher);
    PyBuffer_Release(&slots);
    return result;
}

static PyObject *open_nodes(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer cipher, slots, plain;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*y*w*:open_nodes", &cipher, &slots, &plain))
        return NULL;
    Py_ssize_t count = count_nodes(&cipher, &plain, &slots);
    if (count >= 0) {
        Py_ssize_t bad;
        int status;
        if (count < RELEASE_GIL_FROM) {
            status = open_run(cipher.buf, slots.buf, plain.buf, count, &bad);
        } else {
            Py_BEGIN_ALLOW_THREADS
            status = open_run(cipher.buf, slots.buf, plain.buf, count, &bad);
            Py_END_ALLOW_THREADS
        }
        result = status == DONE ? PyLong_FromSsize_t(bad) : raise_for(status);
    }
    PyBuffer_Release(&cipher);
    PyBuffer_Release(&slots);
    PyBuffer_Release(&plain);
    return result;
}

static PyMethodDef methods[] = {
    {"seal_nodes", seal_nodes, METH_VARARGS,
     "seal_nodes(plain, cipher, slots)\n\n"
     "Seal len(plain) // 4096 nodes, each under a new key from the kernel; key and tag go to its 32-byte slot."},
    {"open_nodes", open_nodes, METH_VARARGS,
     "open_nodes(cipher, slots, plain) -> int\n\n"
     "Open nodes; -1, or the index of the first node whose tag is wrong, and then `plain` is wiped whole."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "adyton.pfile._gcm", "Seal and open runs of nodes over OpenSSL.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__gcm(void)
{
    if (aes_128_gcm == NULL) {
        aes_128_gcm = EVP_CIPHER_fetch(NULL, "AES-128-GCM", NULL);
        if (aes_128_gcm == NULL || pthread_key_create(&context_of_thread, free_context) != 0) {
            PyErr_SetString(PyExc_ImportError, "OpenSSL has no AES-128-GCM");
            return NULL;
        }
    }
    return PyModule_Create(&definition);
}
