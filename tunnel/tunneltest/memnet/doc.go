// Package memnet is a network in memory for tests: connections that behave as TCP does where a relay can
// tell (half-close, reset, reset on close with unread bytes, back-pressure, deadlines), listeners on
// addresses, and names. A Link makes it slow and faulty: delay, bandwidth, bytes that arrive in pieces, stalls,
// connections that die in the middle of a byte stream. It needs no sockets and works in synthetic time
// (testing/synctest).
package memnet
