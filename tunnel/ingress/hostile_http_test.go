package ingress_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest/memnet"
)

// A request that follows in the same packet, and asks for another protocol, does not make one of the request before it.
func TestUpgradeBehindARequest(t *testing.T) {
	e := newEdge(t, nil)
	var odd atomic.Int64
	e.serve(t, appListen, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/first" && len(r.Header["Upgrade"])+len(r.Header["Connection"]) > 0 {
			odd.Add(1)
		}
		_, _ = io.WriteString(w, r.URL.Path)
	})
	for range 100 {
		c := e.dial(t)
		fmt.Fprint(c, "GET /first HTTP/1.1\r\nHost: shop.example\r\n\r\n"+
			"GET /second HTTP/1.1\r\nHost: shop.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		br := bufio.NewReader(c)
		for _, want := range []string{"/first", "/second"} {
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatalf("%s: %v", want, err)
			}
			if body, _ := io.ReadAll(resp.Body); string(body) != want {
				t.Fatalf("%q, want %q", body, want)
			}
		}
		_ = c.Close()
	}
	if n := odd.Load(); n > 0 {
		t.Errorf("%d requests asked for another protocol, although their clients did not", n)
	}
}

// A destination that refuses every stream of a connection that stands is not asked without end.
func TestStreamsThatAreRefused(t *testing.T) {
	e := newEdge(t, nil)
	l, err := e.net.Listen(appListen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var asked atomic.Int64
	go l.Serve(func(c *memnet.Conn) {
		hc, err := h2.NewServer(c, &h2.Config{PingInterval: -1, Handler: func(s *h2.Stream) {
			asked.Add(1)
			s.Reset(h2.RefusedStream)
			_ = s.Close()
		}})
		if err == nil {
			<-hc.Done()
			_ = hc.Close()
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "POST", "http://shop.example/pkg.Service/Call", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/grpc")
	resp, err := e.client(t, http2).Do(r)
	if n := asked.Load(); err != nil || resp.StatusCode < 500 || n > 3 {
		t.Errorf("%v, %v after %d tries, want a refusal after 2", resp, err, n)
	}
}

// What the gateway says of a client, and what policy has it say, the client cannot say in another spelling, nor behind the body.
func TestFieldsInOtherSpellings(t *testing.T) {
	e := newEdge(t, func(c *tunnel.Config) {
		c.Policy.Rules = []policy.Rules{{Name: "team", Rules: []policy.Rule{{}}, Headers: []policy.Header{{Name: "X-Team", Value: "edge"}}}}
	})
	e.serve(t, appListen, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for _, h := range []http.Header{r.Header, r.Trailer} {
			for name, values := range h {
				fmt.Fprintln(w, name, values)
			}
		}
	})
	_, body := e.say(t, "POST / HTTP/1.1\r\nHost: shop.example\r\nConnection: x-team\r\nX_Team: forged\r\nx-team: forged\r\nX_Forwarded_For: forged\r\nX_forwarded-client_cert: forged\r\n"+
		"Transfer-Encoding: chunked\r\nTrailer: X-Sum, X-Team, X-Forwarded-For\r\n\r\n1\r\na\r\n0\r\nX-Sum: good\r\nX-Team: forged\r\nX-Forwarded-For: forged\r\nContent-Length: 5forged\r\nX_Real_IP: forged\r\n\r\n")
	if strings.Contains(body, "forged") || !strings.Contains(body, "X-Sum [good]") || !strings.Contains(body, "X-Team [edge]") {
		t.Errorf("the application sees\n%s", body)
	}
}
