// Package h2test is a scripted HTTP/2 peer for tests: it plays the other end of a connection frame by
// frame, well behaved or hostile, and says in words what it expected when something else came.
//
// A Peer writes what its script tells it to, legal or not, and reads what the tested end sends. While
// reading it audits every frame against what RFC 9113 allows a sender: frame sizes, flow-control windows,
// stream states and identifiers, SETTINGS bounds, field names and values, GOAWAY identifiers. A breach
// fails the test, whatever the test was about.
//
// It has no goroutine: all methods of one Peer are called by one goroutine, the test's, and reading
// happens in the Want methods. Pipe gives an in-memory connection whose waiting is durably blocked in the
// sense of testing/synctest, so scripts run in synthetic time; they run outside a bubble too, but for
// WantIdle.
//
// The frame code here shares nothing with package h2, so that a mistake there does not cancel out here.
// golang.org/x/net/http2/hpack is used for field blocks. The package is test support: nothing but tests
// imports it.
package h2test
