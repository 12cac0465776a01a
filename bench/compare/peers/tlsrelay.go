package peers

import (
	"context"
	"crypto/tls"
	"net"
)

// tlsRelayEntry dials a TLS connection to the exit for every connection it accepts.
func tlsRelayEntry(conf *tls.Config, to string, ln net.Listener) error {
	return accept(ln, func(c net.Conn) {
		out, err := (&tls.Dialer{Config: conf}).DialContext(context.Background(), "tcp", to)
		if err != nil {
			_ = c.Close()
			return
		}
		join(c.(*net.TCPConn), out.(*tls.Conn))
	})
}

// tlsRelayExit connects to the target for every TLS connection it accepts.
func tlsRelayExit(conf *tls.Config, to string, ln net.Listener) error {
	return accept(tls.NewListener(ln, conf), func(c net.Conn) {
		in := c.(*tls.Conn)
		if err := in.Handshake(); err != nil {
			_ = c.Close()
			return
		}
		out, err := dialTCP(context.Background(), to)
		if err != nil {
			_ = c.Close()
			return
		}
		join(in, out)
	})
}
