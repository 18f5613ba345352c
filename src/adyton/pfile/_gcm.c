/* gcm.c for Python; the lock of the interpreter is released where a run is long enough for that to pay. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>

#include "gcm.h"

#define RELEASE_GIL_FROM 4 /* nodes; handing the lock over costs about as much as sealing one */

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
     "Seal len(plain) // 4096 nodes, each under a new key; key and tag go to its 32-byte slot."},
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
    if (prepare_gcm() != DONE) {
        PyErr_SetString(PyExc_ImportError, "OpenSSL has no AES-128-GCM");
        return NULL;
    }
    return PyModule_Create(&definition);
}
