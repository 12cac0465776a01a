// Package memnet is a network in memory for tests: connections that behave as TCP does where a relay can
// tell (half-close, reset, reset on close with unread bytes, back-pressure, deadlines), listeners on
// addresses, and names. It needs no sockets and works in synthetic time (testing/synctest).
package memnet
