package attack

import (
	"context"
	"errors"
	"net"

	"culvert/tunnel/h2"
)

// Innocent opens a tunnel to the exit's echo on a connection of its own, by our own client role. Closing the
// tunnel closes the connection.
func (e *Exit) Innocent() (net.Conn, error) {
	tc, err := dialTLS(e.Address, e.attacker.ClientTLS(nil))
	if err != nil {
		return nil, err
	}
	conn, err := h2.NewClient(tc, &h2.Config{})
	if err != nil {
		_ = tc.Close()
		return nil, err
	}
	s, err := openTunnel(conn, e.servers.echo)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return innocent{s}, nil
}

type innocent struct{ *h2.Stream }

// Close closes the tunnel and its connection.
func (i innocent) Close() error { return errors.Join(i.Stream.Close(), i.Stream.Conn().Close()) }

func openTunnel(conn *h2.Conn, target string) (*h2.Stream, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := conn.Open(ctx, &h2.Header{Method: "CONNECT", Authority: target}, false)
	if err != nil {
		return nil, err
	}
	head, err := s.Response(ctx)
	if err == nil && head.Status != 200 {
		err = errors.New("CONNECT was refused")
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}
