package ingress_test

import (
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"testing"
	"time"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
)

// A request that waits for its answer while a reload forbids it ends when the answer begins, as one does that has an answer.
func TestReloadForbidsAnExchange(t *testing.T) {
	for _, early := range []bool{true, false} {
		e := newEdge(t, nil)
		asked, answer, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
		e.serve(t, appListen, func(w http.ResponseWriter, r *http.Request) {
			if early {
				_ = http.NewResponseController(w).Flush()
			}
			close(asked)
			<-answer
			_, _ = io.WriteString(w, "begun")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done() // the carrier is broken
			close(over)
		})
		got := make(chan error, 1)
		go func() { // ends with the exchange, which is waited for below
			resp, err := e.client(t, http1).Get("http://shop.example/long")
			if err == nil {
				_, err = io.ReadAll(resp.Body)
			}
			got <- err
		}()
		<-asked
		less := edgeConfig()
		less.Policy.Rules = []policy.Rules{{Name: "closed", Action: policy.ActionDeny, Rules: []policy.Rule{{To: []policy.Operation{{Paths: []string{"/long"}}}}}}}
		if err := e.gw.Reload(t.Context(), less); err != nil {
			t.Fatal(err)
		}
		close(answer)
		ends(t, over)
		if err := <-got; err == nil {
			t.Errorf("early %v: an answer that policy does not let pass any more has come to its end", early)
		}
	}
}

// ends waits until the application sees that an exchange is broken off.
func ends(t *testing.T, over <-chan struct{}) {
	t.Helper()
	select {
	case <-over:
	case <-time.After(5 * time.Second):
		t.Fatal("the exchange goes on")
	}
}

// An exchange with an agent ends when a reload takes the agent's name.
func TestReloadTakesTheNameOfAnAgent(t *testing.T) {
	const meshListen, camAddr = edgeAddr + ":15008", "192.168.1.7"
	agents := func(c *tunnel.Config) {
		c.Listeners = append(c.Listeners, tunnel.ListenerConfig{Name: "mesh", Kind: tunnel.KindHBONE, Address: meshListen, Agents: []tunnel.AgentConfig{
			{From: []string{"cluster.local/ns/devices/*"}, Names: []string{"*.devices.example"}},
		}})
		c.Routes = []tunnel.RouteConfig{{Listeners: []string{"edge"}, Hosts: []string{"*.example"}, From: "any", Agents: true}}
	}
	e := newEdge(t, agents)
	asked, over := make(chan struct{}), make(chan struct{})
	e.serve(t, camAddr+":8080", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		close(asked)
		<-r.Context().Done()
		close(over)
	})
	tunneltest.NewGateway(t, e.net, camAddr, e.ca.Issue(t, "cluster.local", "devices", "cam1"), &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "home", Kind: tunnel.KindAgent, Hop: "hub", Names: []string{"cam1.devices.example"}, Offer: map[uint16]string{80: camAddr + ":8080"}}},
		Hops:      map[string]tunnel.HopConfig{"hub": {Address: meshListen, Identity: "spiffe://cluster.local/ns/default/sa/edge"}},
		Policy:    policy.Config{Allow: []string{"cluster.local/ns/default/sa/edge"}},
	}, nil, nil, slog.DiscardHandler)
	for list := e.gw.Agents(10); len(list) != 1 || len(list[0].Names) != 1; list = e.gw.Agents(10) {
		runtime.Gosched()
	}
	got := make(chan error, 1)
	go func() { // ends with the exchange, which is waited for below
		resp, err := e.client(t, http1).Get("http://cam1.devices.example/")
		if err == nil {
			_, err = io.ReadAll(resp.Body)
		}
		got <- err
	}()
	<-asked
	less := edgeConfig()
	agents(less)
	less.Listeners[1].Agents[0].Names = []string{"*.others.example"}
	if err := e.gw.Reload(t.Context(), less); err != nil {
		t.Fatal(err)
	}
	ends(t, over)
	if err := <-got; err == nil {
		t.Error("the exchange with an agent whose name was taken has come to its end")
	}
}
