package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// AdminConfig is the address where operators and probes look at the gateway. It needs no
// authentication, so it stays on loopback.
type AdminConfig struct {
	// Address to serve /healthz, /readyz, /metrics, /flows, /agents, /endpoints and /debug/pprof on, such as
	// `127.0.0.1:15000`. Default: none.
	Address string `yaml:"address"`
	// Open lets Address be one that other hosts reach. Whoever reaches it sees all flows and can take
	// profiles.
	Open bool `yaml:"open"`
}

const (
	// adminHeaderTimeout bounds a client that sends its request slowly.
	adminHeaderTimeout = 5 * time.Second
	// adminIdleTimeout ends connections that ask nothing more.
	adminIdleTimeout = time.Minute
	// adminMaxHeaderBytes is plenty for a probe, curl or a browser.
	adminMaxHeaderBytes = 16 << 10
	// adminEnd is what answers that are under way have at the end of the process.
	adminEnd = 500 * time.Millisecond
	// defaultFlows and maxFlows are how many live flows /flows shows, without and with ?limit=.
	defaultFlows = 1000
	maxFlows     = 1_000_000
)

// admin serves the operator's view. Its handlers ask funcs, so that it knows nothing of how the gateway
// is built and survives every reload.
type admin struct {
	server   *http.Server
	serving  sync.WaitGroup // one for each socket
	ready    atomic.Bool    // all listeners are up
	draining atomic.Bool
	expired  func() bool // the identity's time is over; nil: that is not looked at
	loopback atomic.Bool // the socket is reachable from this host only
}

// newAdmin makes the server; serve starts it. flows returns up to limit live flows, to be
// rendered as JSON.
func newAdmin(metrics prometheus.Gatherer, flows, agents, endpoints func(limit int) any, log *slog.Logger) *admin {
	a := &admin{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.index)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", a.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}))
	mux.HandleFunc("GET /flows", func(w http.ResponseWriter, r *http.Request) { showList(w, r, flows) })
	mux.HandleFunc("GET /agents", func(w http.ResponseWriter, r *http.Request) { showList(w, r, agents) })
	mux.HandleFunc("GET /endpoints", func(w http.ResponseWriter, r *http.Request) { showList(w, r, endpoints) })
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	a.server = &http.Server{
		Handler:           a.sameHost(mux),
		ReadHeaderTimeout: adminHeaderTimeout,
		IdleTimeout:       adminIdleTimeout,
		MaxHeaderBytes:    adminMaxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return a
}

// showList shows what list returns, up to a limit that may be asked for.
func showList(w http.ResponseWriter, r *http.Request, list func(limit int) any) {
	limit := defaultFlows
	if text := r.URL.Query().Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxFlows {
			http.Error(w, fmt.Sprintf("limit is not a number from 1 to %d", maxFlows), http.StatusBadRequest)
			return
		}
		limit = n
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(list(limit)) // the client is gone; there is nobody to tell
}

// serve starts answering on ln. It may be called for a second socket when a reload moved the address.
func (a *admin) serve(ln net.Listener, log *slog.Logger) {
	a.loopback.Store(isLoopback(ln.Addr().String()))
	// Ended by close, or by closing ln; close waits for it.
	a.serving.Go(func() {
		if err := a.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			log.Error("admin address", "err", err)
		}
	})
}

// release accepts no more. Answers under way go on.
func (a *admin) release() {
	// Ends with the last of them, or with close, which waits for it.
	a.serving.Go(func() {
		_ = a.server.Shutdown(context.Background()) // an error of closing the sockets, which nobody can mend
	})
}

// close gives running answers, such as a last scrape, until ctx ends.
func (a *admin) close(ctx context.Context) {
	if a.server.Shutdown(ctx) != nil {
		_ = a.server.Close()
	}
	a.serving.Wait()
}

func (a *admin) index(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintln(w, "Culvert gateway "+buildVersion().Version)
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/flows", "/agents", "/endpoints", "/debug/pprof/"} {
		fmt.Fprintln(w, path)
	}
}

func (a *admin) readyz(w http.ResponseWriter, _ *http.Request) {
	switch {
	case a.draining.Load():
		http.Error(w, "draining", http.StatusServiceUnavailable)
	case !a.ready.Load():
		http.Error(w, "starting", http.StatusServiceUnavailable)
	case a.expired != nil && a.expired():
		http.Error(w, "the identity has expired: no handshake can succeed", http.StatusServiceUnavailable)
	default:
		fmt.Fprintln(w, "ready")
	}
}

// sameHost refuses, on a loopback socket, requests for any other name than this host's: a page in a
// browser must not read the admin address by pointing a name of its own at 127.0.0.1.
func (a *admin) sameHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.loopback.Load() && !hostIsLoopback(r.Host) {
			http.Error(w, "ask for localhost or a loopback address", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func hostIsLoopback(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if host == "localhost" {
		return true
	}
	if len(host) > 2 && host[0] == '[' && host[len(host)-1] == ']' {
		host = host[1 : len(host)-1]
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}
