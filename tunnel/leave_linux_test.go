package tunnel_test

import (
	"io"
	"testing"
	"time"
)

// TestTCPAppLeaves has an app that ends its side and closes its socket before the server's last words, as
// programs do after TLS's close_notify. Nothing was lost that anybody wanted: both gateways record the flow
// as ended well.
func TestTCPAppLeaves(t *testing.T) {
	const flows = 50
	p := newTCPPair(t)
	for range flows {
		app, server := p.open(t)
		if _, err := io.WriteString(app, "all I wanted to say"); err != nil {
			t.Fatal(err)
		}
		app.Close()
		if b, err := io.ReadAll(server); err != nil || string(b) != "all I wanted to say" {
			t.Fatalf("the server read %q, %v", b, err)
		}
		io.WriteString(server, "goodbye") // the entry's system learns that nobody takes it
		server.Close()
	}
	for end := time.Now().Add(20 * time.Second); p.entry.Stats().Active+p.exit.Stats().Active > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("flows do not end")
		}
	}
	for name, ended := range map[string]map[string]int64{"entry": p.entry.Stats().Ended, "exit": p.exit.Stats().Ended} {
		if ended["ok"] != flows {
			t.Errorf("%s: %d of %d flows ended well: %v", name, ended["ok"], flows, ended)
		}
	}
}
