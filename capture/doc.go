// Package capture catches local connections and finds out where they were meant to go.
//
// A [Way] is how a connection is caught: it speaks whatever the app on the other end of an accepted
// connection speaks until the original destination is known, and returns a [Conn], which is that
// connection together with the destination. Ways so far: [Socks5], where the app names the destination
// (RFC 1928, RFC 1929), and [Forward], where the configuration does.
//
//	way, err := capture.NewSocks5(capture.Socks5Config{})
//	c, err := way.Catch(nc)                    // the handshake, in the caller's goroutine
//	up, err := open(c.Host, c.Addr, c.Port)    // policy and the next hop: not this package's matter
//	if err != nil {
//		c.Refused(capture.HostUnreachable) // the app is told in its own protocol
//		c.Close()
//	} else {
//		c.Accepted() // only now the app hears that it is connected
//		relay(c, up)
//	}
//
// The package decides nothing, dials nothing, resolves no name and starts no goroutine. A name that an
// app asked for is handed on as a name, in one spelling, and resolved at the far side. A destination is
// either a canonical IP address or a valid DNS name; whatever a C resolver would still read as an
// address ("0x7f.1", "2130706433", "127.1") is refused here, so that no later stage has to.
//
// What a way does when the flow stands or is refused stays behind [Conn.Accepted] and [Conn.Refused]:
// SOCKS5 sends its replies, and a way without words of its own (a forwarded port, a redirected
// connection) says nothing and resets. A way whose app has already sent payload, or whose payload has to
// be rewritten, puts those bytes in front of the connection; [Conn] serves them first and then gets out
// of the way, so that a relay may work on the socket itself.
package capture
