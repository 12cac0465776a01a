package ingress_test

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"culvert/tunnel"
)

// Under a load of requests that change something the configuration is reloaded, again and again: none is refused, none is cut.
func TestReloadUnderLoad(t *testing.T) {
	const reloads = 60
	conf := func(n int) *tunnel.Config {
		return &tunnel.Config{
			Listeners: []tunnel.ListenerConfig{{Name: "edge", Kind: tunnel.KindIngress, Address: edgeListen, Ingress: tunnel.IngressConfig{MaxBodyBytes: int64(10000 + n)}}},
			Routes: []tunnel.RouteConfig{{Listeners: []string{"edge"}, From: "any", To: appListen, HTTP: &tunnel.RouteHTTPConfig{
				RequestHeaders: tunnel.HeaderChangeConfig{Set: map[string]string{"X-Reload": fmt.Sprint(n)}}}}},
		}
	}
	e := newEdge(t, nil)
	var served atomic.Int64
	e.serve(t, appListen, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		served.Add(1)
		fmt.Fprint(w, "seen ", r.Header.Get("X-Reload"))
	})
	var over atomic.Bool
	var done atomic.Int64
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			c := e.client(t, []func(*http.Protocols){http1, http2}[i%2])
			for !over.Load() {
				var body io.Reader = strings.NewReader("what may be sent again where GOAWAY says that it was not processed")
				if i%2 == 0 {
					body = io.MultiReader(body) // once only
				}
				r, err := http.NewRequest("POST", "http://shop.example/", body)
				if err != nil {
					t.Error(err)
					return
				}
				resp, err := c.Do(r)
				if err != nil {
					t.Errorf("a request is cut: %v", err)
					return
				}
				answer, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != 200 || !strings.HasPrefix(string(answer), "seen ") {
					t.Errorf("answer %d %q, %v", resp.StatusCode, answer, err)
					return
				}
				done.Add(1)
			}
		})
	}
	for n := range reloads {
		for before := done.Load(); done.Load() < before+20 && !t.Failed(); {
			runtime.Gosched()
		}
		if err := e.gw.Reload(t.Context(), conf(n)); err != nil {
			t.Error(err)
		}
	}
	over.Store(true)
	clients.Wait()
	if served.Load() != done.Load() {
		t.Errorf("the application has served %d requests, of which %d were answered", served.Load(), done.Load())
	}
	resp, err := e.client(t, http1).Get("http://shop.example/")
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(resp.Body); string(body) != fmt.Sprint("seen ", reloads-1) {
		t.Errorf("%q, want what the last configuration says", body)
	}
	e.gw.Close()
	if s := e.gw.Stats(); s.Active != 0 || s.Connections != 0 || s.Ended["ok"] != s.Flows {
		t.Errorf("%d flows, of which %d ended well, %d active, %d connections", s.Flows, s.Ended["ok"], s.Active, s.Connections)
	}
}
