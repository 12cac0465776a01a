// Package nowait reads and writes sockets with system calls that never wait, and of which Go's scheduler is not
// told.
//
// The scheduler keeps a thread that looks every 20 µs for processors whose goroutine has entered the system, to
// give them to others. A gateway under load is in the system most of the time, and so that thread runs all the
// time: a tenth of the processor time on a machine where waking a thread is dear, and processors change hands
// for calls that end in microseconds. These calls are short, as nothing is waited for: a goroutine that must wait
// does so in the methods of syscall.RawConn.
package nowait
