package tunneltest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"strings"
	"testing"

	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
)

// TestPair carries a flow through both gateways, in memory, and sees a refusal and both records.
func TestPair(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	p.Echo(t, tunneltest.ExitAddr+":80")
	c, err := p.Dial(context.Background(), tunneltest.ExitAddr+":80")
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 1<<20)
	rand.Read(want)
	go func() { // ends with the flow
		c.Write(want)
		c.CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("echo of %d bytes, %v; want %d", len(got), err, len(want))
	}
	c.Close()

	var refused *tunnel.RefusedError
	if err := p.Refusal(context.Background(), "192.0.2.1:80"); !errors.As(err, &refused) || refused.Status != 400 {
		t.Errorf("another host = %v, want a refusal with 400", err)
	}
	p.Entry.Close()
	p.Exit.Close()
	for _, hop := range []string{"hop=exit", ""} { // the destination, and not the hop, is dst at both
		if want := "dst=" + tunneltest.ExitAddr + ":80 " + hop; !strings.Contains(p.Log.String(), want) {
			t.Errorf("no record with %q:\n%s", want, p.Log.String())
		}
	}
	if n := strings.Count(p.Log.String(), "msg=flow"); n != 4 {
		t.Errorf("%d records, want one of each gateway for each flow:\n%s", n, p.Log.String())
	}
}

// TestPairStrangers checks that identities matter in a Pair as they do outside.
func TestPairStrangers(t *testing.T) {
	ca := tunneltest.NewCA(t)
	p := tunneltest.NewPair(t, tunneltest.Options{EntryID: ca.Issue(t, "cluster.local", "default", "stranger")})
	p.Echo(t, tunneltest.ExitAddr+":80")
	if err := p.Refusal(context.Background(), tunneltest.ExitAddr+":80"); err == nil || errors.Is(err, tunneltest.ErrNotRefused) {
		t.Errorf("an entry of another CA = %v, want a refusal", err)
	}
}
