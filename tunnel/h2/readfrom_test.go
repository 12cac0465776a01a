package h2_test

import (
	"io"
	"net"
	"strings"
	"testing"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// TestReadFromEndsWithoutWindow has sources that end exactly where the peer's window does: END_STREAM must
// follow without a WINDOW_UPDATE, as the peer has all that it was promised and need not send one.
func TestReadFromEndsWithoutWindow(t *testing.T) {
	t.Run("reader", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := client(t, nil, h2test.Setting{ID: h2test.InitialWindowSize, Value: 5})
			endsAtWindow(t, p, struct{ io.Reader }{strings.NewReader("12345")})
		})
	})
	t.Run("socket", func(t *testing.T) {
		app, src := loopback(t)
		defer app.Close()
		defer src.Close()
		near, far := loopback(t)
		defer far.Close()
		conn, err := h2.NewClient(near, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		p := &specPeer{Peer: h2test.NewServer(t, far), conn: conn, t: t}
		p.Handshake(h2test.Setting{ID: h2test.InitialWindowSize, Value: 5})
		io.WriteString(app, "12345")
		app.(*net.TCPConn).CloseWrite()
		endsAtWindow(t, p, src)
	})
}

func endsAtWindow(t *testing.T, p *specPeer, src io.Reader) {
	if err := p.conn.WaitSettings(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := p.conn.Open(t.Context(), &h2.Header{Method: "CONNECT", Authority: "a:1"}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	done := make(chan error, 1)
	go func() {
		_, err := s.ReadFrom(src)
		if err == nil {
			err = s.CloseWrite()
		}
		done <- err
	}()
	p.WantFrame(h2test.Headers, 1, "the request")
	p.WantData(1, []byte("12345"), false, "fills the window")
	p.WantData(1, nil, true, "END_STREAM needs no window")
	if err := <-done; err != nil {
		t.Errorf("ReadFrom and CloseWrite = %v", err)
	}
}
