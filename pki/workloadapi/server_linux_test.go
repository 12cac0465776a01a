package workloadapi_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	client "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"culvert/pki"
	"culvert/pki/workloadapi"
)

const appID = "spiffe://cluster.local/ns/default/sa/app"

// asWorkload makes the test binary a program that asks for its identity, prints what it gets, and ends.
const asWorkload = "CULVERT_TEST_AS_WORKLOAD"

func TestMain(m *testing.M) {
	if addr := os.Getenv(asWorkload); addr != "" {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		svid, err := client.FetchX509SVID(ctx, client.WithAddr(addr))
		if err != nil {
			fmt.Println(status.Code(err), err)
			return
		}
		fmt.Println(svid.ID)
		return
	}
	before := runtime.NumGoroutine()
	code := m.Run()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(code)
	}
	for deadline := time.Now().Add(5 * time.Second); code == 0 && runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<16)
			fmt.Fprintf(os.Stderr, "goroutines left: %s\n", stacks[:runtime.Stack(stacks, true)])
			code = 1
		}
	}
	os.Exit(code)
}

// quickIssuer is a CA's issuer whose SVIDs are to be renewed soon.
type quickIssuer struct {
	workloadapi.Issuer
	renew  atomic.Int64 // a time.Duration
	broken atomic.Bool
	issued atomic.Int64
}

func (q *quickIssuer) IssueX509(ctx context.Context, id string) (*workloadapi.X509SVID, error) {
	if q.broken.Load() {
		return nil, errors.New("the CA is away")
	}
	q.issued.Add(1)
	svid, err := q.Issuer.IssueX509(ctx, id)
	if renew := time.Duration(q.renew.Load()); err == nil && renew > 0 {
		svid.Renew = time.Now().Add(renew)
	}
	return svid, err
}

// api is a Workload API with a CA behind it.
type api struct {
	ca     *pki.Authority
	issuer *quickIssuer
	path   string
	addr   client.ClientOption
}

// ownEntry is that of the test itself.
func ownEntry(t *testing.T) workloadapi.Entry {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	uid := uint32(os.Getuid())
	return workloadapi.Entry{UID: &uid, Path: self, ID: appID}
}

func serve(t *testing.T, entries ...workloadapi.Entry) *api {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	ca, err := pki.OpenAuthority(t.TempDir(), pki.AuthorityConfig{}, log)
	if err != nil {
		t.Fatal(err)
	}
	a := &api{ca: ca, issuer: &quickIssuer{Issuer: ca.Workloads()}}
	dir, err := os.MkdirTemp("", "w") // a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	a.path = filepath.Join(dir, "s")
	a.addr = client.WithAddr("unix://" + a.path)
	srv, err := workloadapi.Listen(workloadapi.Config{Path: a.path, Entries: entries, Issuer: a.issuer, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx) }() // ends with ctx; the cleanup waits
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
		if err := ca.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(a.path); err == nil {
			t.Error("the socket is left")
		}
	})
	return a
}

// within waits until f succeeds.
func within(t *testing.T, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// go-spiffe's X509Source gets an SVID and a bundle that belong together, and sees each of them renewed.
func TestX509Source(t *testing.T) {
	a := serve(t, ownEntry(t))
	a.issuer.renew.Store(int64(100 * time.Millisecond))
	src, err := client.NewX509Source(t.Context(), client.WithClientOptions(a.addr))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	first, err := src.GetX509SVID()
	if err != nil || first.ID.String() != appID {
		t.Fatalf("the SVID is %v, %v", first, err)
	}
	td := spiffeid.RequireTrustDomainFromString("cluster.local")
	bundle, err := src.GetX509BundleForTrustDomain(td)
	if err != nil {
		t.Fatal(err)
	}
	if id, _, err := x509svid.Verify(first.Certificates, bundle); err != nil || id.String() != appID {
		t.Errorf("go-spiffe verifies %v, %v", id, err)
	}
	within(t, func() error {
		svid, err := src.GetX509SVID()
		if err == nil && svid.Certificates[0].SerialNumber.Cmp(first.Certificates[0].SerialNumber) == 0 {
			err = errors.New("the SVID is not renewed")
		}
		return err
	})
	a.issuer.renew.Store(0)
	if _, _, err := a.ca.Rotate(true, false); err != nil {
		t.Fatal(err)
	}
	within(t, func() error {
		bundle, err := src.GetX509BundleForTrustDomain(td)
		if err == nil && len(bundle.X509Authorities()) != 2 {
			err = fmt.Errorf("%d roots, want the announced one too", len(bundle.X509Authorities()))
		}
		return err
	})
}

// A CA that is away does not take away what is valid still.
func TestRenewalFails(t *testing.T) {
	a := serve(t, ownEntry(t))
	a.issuer.renew.Store(int64(time.Millisecond))
	if _, err := client.FetchX509SVID(t.Context(), a.addr); err != nil {
		t.Fatal(err)
	}
	a.issuer.broken.Store(true)
	time.Sleep(2 * time.Millisecond) // beyond the time of renewal
	if svid, err := client.FetchX509SVID(t.Context(), a.addr); err != nil || svid.ID.String() != appID {
		t.Errorf("with the CA away: %v, %v", svid, err)
	}
}

// What is revoked is not handed out any more, whatever is left of its time.
func TestRevokedWorkload(t *testing.T) {
	a := serve(t, ownEntry(t))
	if _, err := client.FetchX509SVID(t.Context(), a.addr); err != nil {
		t.Fatal(err)
	}
	if n, err := a.ca.Revoke(appID); err != nil || n != 1 {
		t.Fatalf("Revoke = %d, %v", n, err)
	}
	if svid, err := client.FetchX509SVID(t.Context(), a.addr); status.Code(err) != codes.PermissionDenied {
		t.Errorf("FetchX509SVID = %v, %v", svid, err)
	}
	if svid, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "db"}, a.addr); status.Code(err) != codes.PermissionDenied {
		t.Errorf("FetchJWTSVID = %v, %v", svid, err)
	}
}

// All processes of an identity share an SVID: who connects again and again makes nobody sign.
func TestSVIDIsShared(t *testing.T) {
	a := serve(t, ownEntry(t))
	for range 20 {
		if _, err := client.FetchX509SVID(t.Context(), a.addr); err != nil {
			t.Fatal(err)
		}
	}
	if n := a.issuer.issued.Load(); n != 1 {
		t.Errorf("%d SVIDs were issued, want 1", n)
	}
}

func TestJWTSource(t *testing.T) {
	other := ownEntry(t)
	other.ID = "spiffe://cluster.local/ns/default/sa/second"
	a := serve(t, ownEntry(t), other)
	src, err := client.NewJWTSource(t.Context(), client.WithClientOptions(a.addr))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	svid, err := src.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "db", ExtraAudiences: []string{"cache"}})
	if err != nil || svid.ID.String() != appID || len(svid.Audience) != 2 {
		t.Fatalf("FetchJWTSVID = %v, %v", svid, err)
	}
	if parsed, err := jwtsvid.ParseAndValidate(svid.Marshal(), src, []string{"cache"}); err != nil || parsed.ID != svid.ID {
		t.Errorf("by the bundle: %v, %v", parsed, err)
	}
	if got, err := client.ValidateJWTSVID(t.Context(), svid.Marshal(), "db", a.addr); err != nil || got.ID != svid.ID || got.Claims["sub"] != appID {
		t.Errorf("ValidateJWTSVID = %+v, %v", got, err)
	}
	if _, err := client.ValidateJWTSVID(t.Context(), svid.Marshal(), "web", a.addr); status.Code(err) != codes.InvalidArgument {
		t.Errorf("for another audience: %v", err)
	}
	if all, err := client.FetchJWTSVIDs(t.Context(), jwtsvid.Params{Audience: "db"}, a.addr); err != nil || len(all) != 2 {
		t.Errorf("FetchJWTSVIDs = %d, %v, want both identities", len(all), err)
	}
	one := spiffeid.RequireFromString(other.ID)
	if svid, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "db", Subject: one}, a.addr); err != nil || svid.ID != one {
		t.Errorf("of one identity: %v, %v", svid, err)
	}
	for name, params := range map[string]jwtsvid.Params{
		"an identity of another":  {Audience: "db", Subject: spiffeid.RequireFromString("spiffe://cluster.local/ns/default/sa/admin")},
		"no audience":             {},
		"a long audience":         {Audience: strings.Repeat("a", 2000)},
		"too many audiences":      {Audience: "a", ExtraAudiences: strings.Split(strings.Repeat("b,", 20)+"b", ",")},
		"an audience of 1 MiB":    {Audience: strings.Repeat("a", 1<<20)},
		"one of them is no text":  {Audience: "a", ExtraAudiences: []string{""}},
		"an identity that is odd": {Audience: "a", Subject: spiffeid.RequireFromString("spiffe://other.example/x")},
	} {
		if svid, err := client.FetchJWTSVID(t.Context(), params, a.addr); err == nil {
			t.Errorf("%s: %v", name, svid)
		}
	}
	if _, _, err := a.ca.Rotate(true, false); err != nil {
		t.Fatal(err)
	}
	within(t, func() error {
		bundle, err := src.GetJWTBundleForTrustDomain(spiffeid.RequireTrustDomainFromString("cluster.local"))
		if err == nil && len(bundle.JWTAuthorities()) != 2 {
			err = fmt.Errorf("%d keys, want the announced one too", len(bundle.JWTAuthorities()))
		}
		return err
	})
}

func TestBundles(t *testing.T) {
	a := serve(t, ownEntry(t))
	set, err := client.FetchX509Bundles(t.Context(), a.addr)
	if err != nil {
		t.Fatal(err)
	}
	td := spiffeid.RequireTrustDomainFromString("cluster.local")
	want, err := spiffebundle.Parse(td, a.ca.Bundle())
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := set.Get(td); !ok || !got.Equal(want.X509Bundle()) {
		t.Errorf("the roots are %v, want %v", got, want)
	}
	jwts, err := client.FetchJWTBundles(t.Context(), a.addr)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := jwts.Get(td); !ok || !got.Equal(want.JWTBundle()) {
		t.Errorf("the keys are %v, want %v", got, want)
	}
}

// Programs are told apart by the file that they execute, whatever they are called, and by their user.
func TestAttestation(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "app") // the same bytes, and not the same file
	copyFile(t, self, copied)
	linked := filepath.Join(t.TempDir(), "app")
	if err := os.Symlink(self, linked); err != nil {
		t.Fatal(err)
	}
	own, other := ownEntry(t), ownEntry(t)
	*other.UID++
	byPath := workloadapi.Entry{Path: self, ID: appID}
	byCopy := workloadapi.Entry{Path: copied, ID: "spiffe://cluster.local/ns/default/sa/copy"}
	gid := uint32(os.Getgid())
	otherGID := gid + 1
	for _, tc := range []struct {
		name    string
		run     string
		entries []workloadapi.Entry
		want    string
	}{
		{"itself", self, []workloadapi.Entry{own}, appID},
		{"by a link", linked, []workloadapi.Entry{own}, appID},
		{"by its path alone", self, []workloadapi.Entry{byPath}, appID},
		{"a copy", copied, []workloadapi.Entry{own}, "PermissionDenied"},
		{"each by its own", copied, []workloadapi.Entry{own, byCopy}, byCopy.ID},
		{"another user's", self, []workloadapi.Entry{other}, "PermissionDenied"},
		{"its group's", self, []workloadapi.Entry{{GID: &gid, ID: appID}}, appID},
		{"another group's", self, []workloadapi.Entry{{GID: &otherGID, Path: self, ID: appID}}, "PermissionDenied"},
		{"nobody's", self, nil, "PermissionDenied"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := serve(t, tc.entries...)
			cmd := exec.CommandContext(t.Context(), tc.run)
			cmd.Env = append(os.Environ(), asWorkload+"=unix://"+a.path)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.HasPrefix(string(out), tc.want) {
				t.Errorf("it gets %s, %v, want %s", out, err, tc.want)
			}
		})
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
}

// Calls without the security header are refused, whatever they ask for.
func TestSecurityHeader(t *testing.T) {
	a := serve(t, ownEntry(t))
	conn, err := grpc.NewClient("unix://"+a.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := workload.NewSpiffeWorkloadAPIClient(conn)
	for _, header := range []string{"", "false", "TRUE"} {
		ctx := t.Context()
		if header != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", header)
		}
		stream, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("header %q: a stream: %v", header, err)
		}
		if _, err := c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("header %q: a call: %v", header, err)
		}
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true")
	stream, err := c.FetchWITSVID(ctx, &workload.WITSVIDRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("what is not served: %v", err)
	}
}

// One user has no more than a quarter of the connections, and gets them back.
func TestConnectionsAreBounded(t *testing.T) {
	a := serve(t, ownEntry(t))
	var open []net.Conn
	defer func() {
		for _, nc := range open {
			_ = nc.Close()
		}
	}()
	refused := 0
	for range 300 {
		nc, err := net.Dial("unix", a.path)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, nc)
	}
	for _, nc := range open { // gRPC says hello to those that it serves
		_ = nc.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, _ := nc.Read(make([]byte, 1)); n == 0 {
			refused++
		}
	}
	if refused != 300-256 {
		t.Errorf("%d of 300 connections were refused, want 44", refused)
	}
	for _, nc := range open {
		_ = nc.Close()
	}
	open = nil
	within(t, func() error { _, err := client.FetchX509SVID(t.Context(), a.addr); return err })
}

func TestListenRefuses(t *testing.T) {
	dir, err := os.MkdirTemp("", "w")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := serve(t)
	for _, tc := range []struct{ name, path, want string }{
		{"a file", file, "no socket"}, {"a folder that is not there", filepath.Join(dir, "a", "b"), "no such file"},
		{"a socket that is served", a.path, "served already"}, {"a relative path", "s", "absolute"},
	} {
		if _, err := workloadapi.Listen(workloadapi.Config{Path: tc.path}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Listen = %v, want %q", tc.name, err, tc.want)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "kept" {
		t.Error("the file is gone")
	}
	if _, err := workloadapi.Listen(workloadapi.Config{Path: filepath.Join(dir, "s"), Entries: []workloadapi.Entry{{ID: appID}}}); err == nil {
		t.Error("an entry for everybody")
	}
	// One that a crash left behind is taken over.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "dead"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	srv, err := workloadapi.Listen(workloadapi.Config{Path: filepath.Join(dir, "dead"), Issuer: a.issuer, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := srv.Serve(ctx); err != nil {
		t.Error(err)
	}
}
