/* The interpreter's lock as `reader.pause` and `reader.resume` (table.h) want it. */
#ifndef RINGKV_INTERPRETER_H
#define RINGKV_INTERPRETER_H

#include <Python.h>

static inline void *interpreter_pause(void) { return PyEval_SaveThread(); }
static inline void interpreter_resume(void *state) { PyEval_RestoreThread((PyThreadState *)state); }

#endif
