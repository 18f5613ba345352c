/*
 * Reads of a served file that need no Python: FUSE's read callback, for ranges of a protected file whose committed
 * state is what the program must see and whose tree nodes are verified and in memory.  Everything else, and whatever
 * fails here, goes to the callback in Python, which reads again and says what is wrong.
 *
 * The FUSE loop has one thread, which runs this and every other callback, so nothing that a Shortcut refers to changes
 * while a read goes on.  The interpreter's lock is held only while Python objects are looked at.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <openssl/crypto.h>

#include "../pfile/gcm.h"

#define INLINE_BYTES 3072 /* the plaintext in node 0; layout.py, and a test that compares */
#define DATA_SLOTS 96
#define MOST_BYTES ((Py_ssize_t)1 << 60)
#define MOST_NODES 258 /* of one read: 1 MiB that begins and ends within a node */

#define IN_ORDER_FROM (64 * 1024)  /* bytes of a read that may belong to a file that is read in order */
#define AHEAD_BYTES (8 << 20)      /* how far the host's file is asked for ahead of such a program */
#define STEP_BYTES (2 << 20)       /* and in which steps */

typedef int (*read_function)(const char *path, char *buffer, size_t size, off_t offset, void *info);

typedef struct {
    PyObject_HEAD
    int fd;
    int allowed;
    Py_ssize_t size;      /* plaintext bytes */
    PyObject *trees;      /* dict: number of a tree node -> bytearray of its verified plaintext, or NULL */
    PyObject *fetch;      /* called with the number of one that is not there: puts it there, or raises; or NULL */
    Py_ssize_t next;      /* where the next read is, if the file is read in order */
    Py_ssize_t asked_for; /* up to where the host's file was asked for ahead of the program; 0: nowhere */
} Shortcut;

/* What a read needs, copied while the interpreter's lock is held. */
struct plan {
    int fd;
    int64_t first, last; /* data nodes */
    int64_t end;         /* of the plaintext range */
    unsigned char slots[MOST_NODES * SLOT];
};

struct ask {
    int64_t fd, offset, size;
};

/* The one mount of this process. */
static struct {
    PyObject *shortcuts; /* dict: file handle -> Shortcut */
    read_function python;
    Py_ssize_t handle_at; /* of the file handle in struct fuse_file_info */
    Py_buffer clock;      /* two doubles, see storage_watchdog.py: when the operation began, and whether it is a read from here */
    int ahead;            /* pipe to the thread that asks for what will be read */
} mount = {.ahead = -1};

static int64_t place_of(int64_t data)
{
    return (2 + data + data / DATA_SLOTS) * NODE;
}

/* ---------------------------------------------------------------- with the interpreter's lock */

/* The verified plaintext of a tree node, as a new reference; NULL where it cannot be had. */
static PyObject *tree_node(Shortcut *file, int64_t number, int64_t data, int64_t count)
{
    PyObject *tree = NULL, *key = PyLong_FromLongLong(number);
    if (key != NULL && file->allowed) {
        tree = PyDict_GetItemWithError(file->trees, key);
        Py_XINCREF(tree);
        if (tree == NULL && !PyErr_Occurred()) {
            PyObject *fetch = Py_NewRef(file->fetch);
            int fd = file->fd;
            /* the kernel may fetch the data nodes while the tree node that leads to them is read; a host that stalls
               here must not keep the lock from the thread that notices */
            Py_BEGIN_ALLOW_THREADS
            posix_fadvise(fd, place_of(data), count * NODE, POSIX_FADV_WILLNEED);
            Py_END_ALLOW_THREADS
            tree = PyObject_CallOneArg(fetch, key);
            Py_DECREF(fetch);
            if (!file->allowed)
                Py_CLEAR(tree);
        }
    }
    Py_XDECREF(key);
    PyErr_Clear(); /* Python reads again, and says what is wrong */
    if (tree != NULL && (!PyByteArray_CheckExact(tree) || PyByteArray_GET_SIZE(tree) != NODE))
        Py_CLEAR(tree);
    return tree;
}

static int copy_slots(Shortcut *file, int64_t first, int64_t last, unsigned char *slots)
{
    for (int64_t data = first; data <= last;) {
        int64_t within = data % DATA_SLOTS;
        int64_t count = last - data + 1 < DATA_SLOTS - within ? last - data + 1 : DATA_SLOTS - within;
        PyObject *tree = tree_node(file, data / DATA_SLOTS, data, count);
        if (tree == NULL)
            return 0;
        memcpy(slots + (data - first) * SLOT, PyByteArray_AS_STRING(tree) + within * SLOT, (size_t)count * SLOT);
        Py_DECREF(tree);
        data += count;
    }
    return 1;
}

/* Whether what lies ahead of a program that reads in order is to be asked for now. */
static int look_ahead(Shortcut *file, int64_t offset, int64_t size, struct ask *ask)
{
    if (size < IN_ORDER_FROM)
        return 0;
    if (offset < file->next || offset > file->next + STEP_BYTES)
        file->asked_for = 0;
    file->next = offset + size;
    int64_t from = file->asked_for > file->next ? file->asked_for : file->next;
    if (from >= file->size || from - offset >= AHEAD_BYTES)
        return 0;
    file->asked_for = from + STEP_BYTES;
    ask->fd = file->fd;
    ask->offset = place_of(from < INLINE_BYTES ? 0 : (from - INLINE_BYTES) / NODE);
    ask->size = STEP_BYTES + STEP_BYTES / 64;
    return 1;
}

static int make_plan(uint64_t handle, int64_t offset, int64_t size, struct plan *plan, struct ask *ask, int *asking)
{
    int quick = 0;
    PyObject *key = PyLong_FromUnsignedLongLong(handle);
    PyObject *found = key == NULL ? NULL : PyDict_GetItemWithError(mount.shortcuts, key);
    Py_XDECREF(key);
    PyErr_Clear();
    if (found == NULL)
        return 0;
    Shortcut *file = (Shortcut *)Py_NewRef(found);
    if (!file->allowed) {
        Py_DECREF(file);
        return 0;
    }
    *asking = look_ahead(file, offset, size, ask);
    if (offset >= INLINE_BYTES && size > 0 && offset < file->size) {
        plan->fd = file->fd;
        plan->end = size < file->size - offset ? offset + size : file->size;
        plan->first = (offset - INLINE_BYTES) / NODE;
        plan->last = (plan->end - 1 - INLINE_BYTES) / NODE;
        quick = plan->last - plan->first < MOST_NODES && copy_slots(file, plan->first, plan->last, plan->slots);
    }
    Py_DECREF(file);
    return quick;
}

/* ---------------------------------------------------------------- without it */

/* Nodes first..last of one tree node: whole ones are opened in `buffer` itself, the cut ones at the ends beside it. */
static int read_segment(const struct plan *plan, int64_t first, int64_t last, int64_t offset, char *buffer,
                        unsigned char (*edges)[NODE])
{
    struct iovec parts[3];
    int64_t begins[3];
    int count = 0;
    for (int64_t data = first; data <= last; data++) {
        int64_t begin = INLINE_BYTES + data * NODE;
        int whole = begin >= offset && begin + NODE <= plan->end;
        if (whole && count > 0 && parts[count - 1].iov_base != edges[0]) {
            parts[count - 1].iov_len += NODE;
            continue;
        }
        begins[count] = data;
        parts[count].iov_base = whole ? (void *)(buffer + (begin - offset)) : (void *)edges[data == plan->first ? 0 : 1];
        parts[count].iov_len = NODE;
        count++;
    }
    if (preadv(plan->fd, parts, count, place_of(first)) != (last - first + 1) * NODE)
        return 0;
    for (int i = 0; i < count; i++) {
        ptrdiff_t bad;
        const unsigned char *slots = plan->slots + (begins[i] - plan->first) * SLOT;
        if (open_run(parts[i].iov_base, slots, parts[i].iov_base, (ptrdiff_t)parts[i].iov_len / NODE, &bad) != DONE
            || bad >= 0)
            return 0;
        if (parts[i].iov_base != edges[0] && parts[i].iov_base != edges[1])
            continue;
        int64_t begin = INLINE_BYTES + begins[i] * NODE;
        int64_t low = begin > offset ? begin : offset;
        int64_t high = begin + NODE < plan->end ? begin + NODE : plan->end;
        memcpy(buffer + (low - offset), (unsigned char *)parts[i].iov_base + (low - begin), (size_t)(high - low));
    }
    return 1;
}

static int read_nodes(const struct plan *plan, int64_t offset, char *buffer)
{
    unsigned char edges[2][NODE];
    int done = 1;
    for (int64_t data = plan->first; data <= plan->last && done;) {
        int64_t last = data - data % DATA_SLOTS + DATA_SLOTS - 1;
        if (last > plan->last)
            last = plan->last;
        done = read_segment(plan, data, last, offset, buffer, edges);
        data = last + 1;
    }
    OPENSSL_cleanse(edges, sizeof edges);
    return done;
}

static int on_read(const char *path, char *buffer, size_t size, off_t offset, void *info)
{
    struct plan plan;
    struct ask ask;
    int asking = 0, quick = 0, done = 0;
    uint64_t handle;
    volatile double *clock = mount.clock.buf;
    struct timespec now;
    memcpy(&handle, (const char *)info + mount.handle_at, sizeof handle);
    clock_gettime(CLOCK_MONOTONIC, &now);
    clock[1] = 1;
    clock[0] = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
    if (size <= INT32_MAX && offset >= 0 && offset <= INT64_MAX - (int64_t)INT32_MAX) {
        PyGILState_STATE lock = PyGILState_Ensure();
        quick = make_plan(handle, offset, (int64_t)size, &plan, &ask, &asking);
        PyGILState_Release(lock);
    }
    if (asking && write(mount.ahead, &ask, sizeof ask) != (ssize_t)sizeof ask)
        asking = 0; /* the pipe is full: the thread is behind, and the program reads without it */
    if (quick) {
        done = read_nodes(&plan, offset, buffer);
        OPENSSL_cleanse(plan.slots, (size_t)(plan.last - plan.first + 1) * SLOT);
        if (!done)
            OPENSSL_cleanse(buffer, size);
    }
    clock[0] = 0;
    if (done)
        return (int)(plan.end - offset);
    return mount.python(path, buffer, size, offset, info);
}

/* ---------------------------------------------------------------- for Python */

static PyObject *shortcut_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(names))
{
    int fd;
    if (!PyArg_ParseTuple(args, "i:Shortcut", &fd))
        return NULL;
    Shortcut *self = (Shortcut *)type->tp_alloc(type, 0);
    if (self != NULL)
        self->fd = fd;
    return (PyObject *)self;
}

static void shortcut_dealloc(Shortcut *self)
{
    Py_CLEAR(self->trees);
    Py_CLEAR(self->fetch);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *shortcut_allow(Shortcut *self, PyObject *args)
{
    Py_ssize_t size;
    PyObject *trees, *fetch;
    if (!PyArg_ParseTuple(args, "nO!O:allow", &size, &PyDict_Type, &trees, &fetch))
        return NULL;
    Py_INCREF(trees);
    Py_XSETREF(self->trees, trees);
    Py_INCREF(fetch);
    Py_XSETREF(self->fetch, fetch);
    self->size = size;
    self->allowed = size <= MOST_BYTES; /* beyond it, which no disk holds, a place could overflow */
    Py_RETURN_NONE;
}

static PyObject *shortcut_forbid(Shortcut *self, PyObject *Py_UNUSED(args))
{
    self->allowed = 0;
    Py_CLEAR(self->trees);
    Py_CLEAR(self->fetch);
    Py_RETURN_NONE;
}

static PyMethodDef shortcut_methods[] = {
    {"allow", (PyCFunction)shortcut_allow, METH_VARARGS,
     "allow(size, trees, fetch)\n\n"
     "From now on what the host holds is what is to be read: `size` bytes below these tree nodes; `fetch(number)`\n"
     "returns one that is not among them, verified."},
    {"forbid", (PyCFunction)shortcut_forbid, METH_NOARGS, "forbid()\n\nFrom now on it is not."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject shortcut_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "adyton.vfs._reads.Shortcut",
    .tp_doc = "Shortcut(fd)\n\nAn open protected file whose host file is `fd`, for as long as `allow` says so.",
    .tp_basicsize = sizeof(Shortcut),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = shortcut_new,
    .tp_dealloc = (destructor)shortcut_dealloc,
    .tp_methods = shortcut_methods,
};

static PyObject *install(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *shortcuts, *clock, *python;
    Py_ssize_t handle_at;
    int ahead;
    Py_buffer view;
    if (!PyArg_ParseTuple(args, "O!O!nOi:install", &PyDict_Type, &shortcuts, &PyLong_Type, &python, &handle_at, &clock,
                          &ahead))
        return NULL;
    void *function = PyLong_AsVoidPtr(python);
    if (function == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "no function to fall back on");
        return NULL;
    }
    if (PyObject_GetBuffer(clock, &view, PyBUF_WRITABLE) != 0)
        return NULL;
    if (view.len != 2 * (Py_ssize_t)sizeof(double)) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "the clock has two doubles");
        return NULL;
    }
    if (mount.clock.obj != NULL)
        PyBuffer_Release(&mount.clock);
    Py_INCREF(shortcuts);
    Py_XSETREF(mount.shortcuts, shortcuts);
    mount.python = (read_function)function;
    mount.handle_at = handle_at;
    mount.clock = view;
    mount.ahead = ahead;
    return PyLong_FromVoidPtr((void *)on_read);
}

static PyMethodDef methods[] = {
    {"install", install, METH_VARARGS,
     "install(shortcuts, python, handle_at, clock, ahead) -> int\n\n"
     "The address of FUSE's read callback, which tries the Shortcut of the file handle (at byte `handle_at` of struct\n"
     "fuse_file_info) and goes to the callback at address `python` otherwise. `clock` is a StorageWatchdog's. What a\n"
     "program that reads in order will want is written to the pipe `ahead`, as three int64: descriptor, offset, size."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "adyton.vfs._reads", "FUSE reads that need no Python.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__reads(void)
{
    if (prepare_gcm() != DONE) {
        PyErr_SetString(PyExc_ImportError, "OpenSSL has no AES-128-GCM");
        return NULL;
    }
    if (PyType_Ready(&shortcut_type) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL
        && (PyModule_AddObjectRef(module, "Shortcut", (PyObject *)&shortcut_type) < 0
            || PyModule_AddIntConstant(module, "INLINE_BYTES", INLINE_BYTES) < 0
            || PyModule_AddIntConstant(module, "DATA_SLOTS", DATA_SLOTS) < 0
            || PyModule_AddIntConstant(module, "NODE_BYTES", NODE) < 0)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
