package h2_test

import (
	"testing"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// TestMalformedAuthorityIsAnswered checks that a destination with forbidden octets is answered with 400
// before the reset that RFC 9113, section 8.1.1, asks for, and that other tunnels live on.
func TestMalformedAuthorityIsAnswered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := server(t, &h2.Config{})
		for i, authority := range []string{"a\x01:1", "a\x7f:1", "a:1\r\nx: y", "a\n:1", "a\x00:1", " a:1"} {
			id := uint32(2*i + 1)
			p.WriteHeaders(id, false, h2test.Connect(authority)...)
			if f := p.WantFrame(h2test.Headers, id, "an answer"); f.Value(":status") != "400" || !f.EndStream() {
				t.Errorf("%q was answered with %v, want 400 and the end", authority, f)
			}
			p.WantRST(id, "a malformed message", h2test.ProtocolError)
		}
		p.WriteHeaders(101, false, h2test.Connect("a:1")...)
		p.WantFrame(h2test.Headers, 101, "a good one is taken")
		p.WriteData(101, true, []byte("x"))
		p.WantData(101, []byte("x"), false, "and echoes")
	})
}
