package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

const (
	// demoStart bounds the time until both gateways are ready and the page was fetched once.
	demoStart = 20 * time.Second
	// demoPoll is how often readiness is asked for.
	demoPoll = 20 * time.Millisecond
	// demoPorts is how many ports after the wanted one are tried for SOCKS.
	demoPorts = 50

	demoTrustDomain = "cluster.local"
	demoNamespace   = "demo"
)

const demoPage = `Hello from behind the exit gateway.

This page came over SOCKS5 from the entry gateway, which had it from the exit gateway
in an HTTP/2 CONNECT tunnel under mutual TLS 1.3.
`

func demoCommand() *cobra.Command {
	var socks, state string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Start an entry and an exit gateway on this host, and a page to fetch through them",
		Long: `Start an entry gateway (SOCKS5) and an exit gateway as two processes, each with an
identity of its own from a CA made for this run, and a small web server to fetch from.
When both are ready, commands to try are printed. SIGINT (Ctrl-C) or SIGTERM ends all.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkListenAddress(socks); err != nil {
				return fmt.Errorf("--socks: %w", err)
			}
			if !isLoopback(socks) {
				return fmt.Errorf("--socks: %s is reachable from other hosts; the demo stays on loopback, such as 127.0.0.1:1080", socks)
			}
			// A reader of the output that has gone must not end the demo before it has cleared up.
			signal.Ignore(syscall.SIGPIPE)
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			return failed(runDemo(ctx, socks, state, cmd.OutOrStdout(), cmd.ErrOrStderr()))
		},
	}
	cmd.Flags().StringVar(&socks, "socks", "127.0.0.1:1080", "`ADDR` of the entry gateway's SOCKS5 listener; the next free port if it is in use")
	cmd.Flags().StringVar(&state, "state", "", "keep the CA and the identities in `DIR` (default: a temporary folder, removed at the end)")
	return cmd
}

// runDemo makes everything, waits until ctx or a gateway ends it, and clears up.
func runDemo(ctx context.Context, socks, state string, out, log io.Writer) (err error) {
	// The kernel ends the children when the thread that started them ends: see endWithParent.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	dir := state
	if dir == "" {
		if dir, err = os.MkdirTemp("", "culvert-demo-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	if err := demoIdentities(dir); err != nil {
		return err
	}
	page, err := servePage()
	if err != nil {
		return err
	}
	defer page.close()
	d := &demo{dir: dir, page: page.url, children: newChildren(log)}
	defer d.children.end()
	err = d.start(ctx, log, socks)
	switch {
	case ctx.Err() != nil:
		return nil // ended while starting, as asked
	case err != nil:
		return err
	}
	d.explain(out)
	select {
	case <-ctx.Done():
		return nil
	case c := <-d.children.ended:
		return c.reason()
	}
}

// demo is two gateways and where they are.
type demo struct {
	dir      string // identities
	page     string // URL to fetch
	children *children

	socks, mesh, entryAdmin, exitAdmin net.Listener // handed to the gateways, so that a free port stays free
}

// start brings both gateways up and returns when a page came through them.
func (d *demo) start(ctx context.Context, log io.Writer, socksAddress string) error {
	defer d.closeSockets() // the children have their own copies
	if err := d.openSockets(log, socksAddress); err != nil {
		return err
	}
	exit := d.arguments("exit", d.exitAdmin, "--hbone", d.mesh.Addr().String(), "--egress", "*")
	if err := d.children.start("exit", exit, d.mesh, d.exitAdmin); err != nil {
		return err
	}
	entry := d.arguments("entry", d.entryAdmin, "--socks", d.socks.Addr().String(), "--via", d.mesh.Addr().String())
	if err := d.children.start("entry", entry, d.socks, d.entryAdmin); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, demoStart)
	defer cancel()
	for _, a := range []net.Listener{d.exitAdmin, d.entryAdmin} {
		if err := d.waitFor(ctx, "http://"+a.Addr().String()+"/readyz", ""); err != nil {
			return err
		}
	}
	return d.waitFor(ctx, d.page, d.proxy())
}

func (d *demo) arguments(who string, admin net.Listener, more ...string) []string {
	at := func(name string) string { return filepath.Join(d.dir, name) }
	return append([]string{
		"run", "--cert", at(who + ".pem"), "--key", at(who + ".key"), "--roots", at("roots.pem"),
		"--state", at(who), "--admin", admin.Addr().String(), "--drain", "1s",
	}, more...)
}

func (d *demo) proxy() string { return "socks5h://" + d.socks.Addr().String() }

// explain prints the commands to try.
func (d *demo) explain(out io.Writer) {
	fmt.Fprintf(out, `Two gateways are running:
  entry  SOCKS5 at %-21s  %s
  exit   HBONE at  %-21s  %s
Try in another terminal:

curl -x %s %s
curl http://%s/flows
curl http://%s/metrics

The entry gateway takes any other address or name too. Ctrl-C ends both.
`, d.socks.Addr(), demoID("entry"), d.mesh.Addr(), demoID("exit"), d.proxy(), d.page, d.entryAdmin.Addr(), d.exitAdmin.Addr())
}

func demoID(who string) string {
	return "spiffe://" + demoTrustDomain + "/ns/" + demoNamespace + "/sa/" + who
}

func (d *demo) openSockets(log io.Writer, socksAddress string) (err error) {
	if d.socks, err = listenNear(log, socksAddress); err != nil {
		return err
	}
	for _, ln := range []*net.Listener{&d.mesh, &d.entryAdmin, &d.exitAdmin} {
		if *ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) closeSockets() {
	for _, ln := range []net.Listener{d.socks, d.mesh, d.entryAdmin, d.exitAdmin} {
		if ln != nil {
			_ = ln.Close()
		}
	}
}

// listenNear takes address or the next port after it that is free, and says so.
func listenNear(log io.Writer, address string) (net.Listener, error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	first, err := strconv.Atoi(text)
	if err != nil {
		return nil, err
	}
	var firstErr error
	for port := first; port <= min(first+demoPorts, 65535); port++ {
		ln, err := new(sockets).listen(tcpSocket(net.JoinHostPort(host, strconv.Itoa(port))))
		if err == nil {
			if firstErr != nil {
				fmt.Fprintf(log, "%v; taking %s\n", firstErr, ln.Addr())
			}
			return ln, nil
		}
		if firstErr == nil {
			firstErr = err
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return nil, firstErr
}

// waitFor asks address, through proxy if there is one, until it answers 200, a gateway ends, or ctx does.
func (d *demo) waitFor(ctx context.Context, address, proxy string) error {
	transport := &http.Transport{DisableKeepAlives: true}
	if proxy != "" {
		to, err := url.Parse(proxy)
		if err != nil {
			return err
		}
		transport.Proxy = http.ProxyURL(to)
	}
	client := &http.Client{Transport: transport}
	tick := time.NewTicker(demoPoll)
	defer tick.Stop()
	for {
		err := fetch(ctx, client, address)
		if err == nil {
			return nil
		}
		select {
		case c := <-d.children.ended:
			return c.reason()
		case <-ctx.Done():
			return fmt.Errorf("not ready after %v: %w", demoStart, err)
		case <-tick.C:
		}
	}
}

func fetch(ctx context.Context, client *http.Client, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", address, res.Status)
	}
	return nil
}

// servedPage is the web server to fetch from.
type servedPage struct {
	url    string
	server *http.Server
	done   chan struct{} // closed when the server's goroutine has ended
}

func servePage() (*servedPage, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &servedPage{url: "http://" + ln.Addr().String() + "/", done: make(chan struct{})}
	p.server = &http.Server{
		ReadHeaderTimeout: adminHeaderTimeout,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			_, _ = io.WriteString(w, demoPage) // the client is gone; there is nobody to tell
		}),
	}
	// Ended and waited for by close.
	go func() {
		defer close(p.done)
		_ = p.server.Serve(ln) // ErrServerClosed after close; nothing else ends it
	}()
	return p, nil
}

func (p *servedPage) close() {
	_ = p.server.Close()
	<-p.done
}
