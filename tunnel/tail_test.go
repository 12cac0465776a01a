package tunnel_test

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"testing"

	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
)

// A hop answers in full, ends its side and stops the request, which is not over, with RST_STREAM(NO_ERROR) (RFC 9113,
// section 8.1): an app that reads slowly gets all of the answer, and then its end.
func TestTailBeforeResetWithNoError(t *testing.T) {
	const tail = 16 << 20
	content := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{}), tail) }
	p := tunneltest.NewPair(t, tunneltest.Options{Entry: func(c *tunnel.Config) {
		c.Hops["exit"] = tunnel.HopConfig{Address: "10.0.0.3:15008"}
	}})
	newFakeHop(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "far"), "10.0.0.3:15008", func(s *h2.Stream) {
		defer s.Close()
		if s.Respond(&h2.Header{Status: 200}, false) != nil {
			return
		}
		if _, err := io.Copy(s, content()); err == nil && s.CloseWrite() == nil {
			s.Reset(h2.NoError)
		}
	})
	for _, talks := range []bool{false, true} {
		c, err := p.Dial(testContext(t), "192.0.2.1:80")
		if err != nil {
			t.Fatal(err)
		}
		if talks {
			c.Write([]byte("a request that goes on"))
		}
		got, want := sha256.New(), sha256.New()
		n, err := io.Copy(got, struct{ io.Reader }{c}) // 32 KiB at a time
		io.Copy(want, content())
		if n != tail || err != nil || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			t.Errorf("the app, which talks: %v, got %d bytes, %v, want %d and the end", talks, n, err, tail)
		}
		c.Close()
	}
	waitUntil(t, "the records", func() bool { return p.Entry.Stats().Active == 0 })
}
