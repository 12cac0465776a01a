package main

import (
	"bytes"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The repository tests itself: this file holds what it may import, repo_code_test.go how its code looks and
// repo_text_test.go what its documents say. CONTRIBUTING.md lists the rules for people.

// repoRoot is the project's root as seen from this package.
const repoRoot = "../.."

// repoModule is the path under which the packages import each other.
const repoModule = "culvert"

// repoImportRule is a line of repoImports.
type repoImportRule struct {
	pkg string
	may []string
}

// repoImports says which of our packages a package may import outside its tests. The first pattern that matches the
// package counts. "x/*" is every folder directly in x, "x/..." is x and all below, "..." is everything.
var repoImports = []repoImportRule{
	{"cmd/gateway", []string{"..."}},
	{"bench/...", []string{"..."}},
	{"deploy", nil},
	{"tunnel/nowait", nil},
	{"tunnel/datagram", []string{"tunnel/nowait"}},
	{"tunnel/framing", nil},
	{"tunnel/h2/...", []string{"tunnel/nowait"}},
	{"tunnel/ssh", []string{"tunnel", "pki/*"}},
	{"tunnel/ingress", []string{"tunnel", "tunnel/h2", "tunnel/framing", "policy", "pki/*"}},
	{"tunnel/endpoint", []string{"pki/*"}},
	{"tunnel", []string{"tunnel/h2", "tunnel/nowait", "tunnel/datagram", "tunnel/framing", "tunnel/endpoint", "capture", "policy", "pki/*"}},
	{"h3", []string{"tunnel", "pki/*"}},
	{"capture", nil},
	{"capture/*", []string{"capture"}},
	{"policy/...", []string{"policy", "pki/*"}},
	{"pki/*", nil},
	{"pki", []string{"pki/*"}},
	{"push/...", []string{"push/...", "pki/*"}},
}

// repoHomes names the only packages that may import a heavy module outside tests. The first prefix that matches the
// import counts; a module with no home at all is for tests and bench only.
var repoHomes = []struct {
	imports string
	homes   []string
}{
	{"github.com/quic-go", []string{"h3"}},
	{"golang.org/x/crypto/acme", []string{"pki/acme"}},
	{"golang.org/x/crypto/ssh", []string{"tunnel/ssh", "pki/sshkeys"}},
	{"github.com/nats-io", []string{"push/jetstream", "push/cloudevents"}},
	{"github.com/envoyproxy", []string{"push/xds", "policy/extauthz"}},
	{"google.golang.org/grpc", []string{"push/xds", "policy/extauthz", "pki/istioca", "pki/workloadapi", "pki"}},
	{"cel.dev/cel-go", []string{"policy"}},
	{"golang.org/x/net/http2/hpack", []string{"tunnel/h2", "capture"}},
	{"golang.org/x/net/http2", nil},
	{"github.com/armon/go-socks5", []string{"capture"}},
	{"github.com/google/nftables", []string{"capture/rules"}},
	{"github.com/miekg/dns", []string{"capture/names"}},
	{"github.com/golang-jwt/jwt", []string{"pki/jwt"}},
	{"github.com/MicahParks", []string{"pki/jwt"}},
	{"github.com/prometheus", []string{"cmd/gateway"}},
	{"github.com/spf13", []string{"cmd/gateway"}},
	{"github.com/spiffe/go-spiffe", []string{"pki/workloadapi", "pki"}},
	{"google.golang.org/protobuf", []string{"push/xds", "policy/extauthz", "pki/istioca", "pki/workloadapi"}},
	{"go.yaml.in/yaml", []string{"cmd/gateway"}},
	{"github.com/pires/go-proxyproto", []string{"tunnel", "tunnel/ingress"}},
	{"golang.org/x/time", []string{"tunnel"}},
}

// repoBannedNames are names that say nothing about what a package does.
var repoBannedNames = []string{"util", "utils", "common", "helper", "helpers", "misc"}

// repoSource is one Go file of the tree.
type repoSource struct {
	path      string // from the root, with slashes
	text      []byte
	fset      *token.FileSet
	file      *ast.File
	test      bool // a test, or part of a package that exists for tests (h2test, tunneltest)
	generated bool
}

// dir is the package of s: its folder, from the root.
func (s *repoSource) dir() string { return path.Dir(s.path) }

// line is where pos stands in s.
func (s *repoSource) line(pos token.Pos) int { return s.fset.Position(pos).Line }

// at names a place in s for a test's message.
func (s *repoSource) at(pos token.Pos) string { return s.path + ":" + strconv.Itoa(s.line(pos)) }

// repoFiles lists the files of the tree: what git tracks or would track, or without git everything that no make
// target made.
func repoFiles(t *testing.T) []string {
	t.Helper()
	git := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	git.Dir = repoRoot
	var names []string
	if out, err := git.Output(); err == nil {
		for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
			if info, err := os.Stat(filepath.Join(repoRoot, name)); err == nil && info.Mode().IsRegular() {
				names = append(names, name)
			}
		}
		return names
	}
	err := fs.WalkDir(os.DirFS(repoRoot), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (name == ".git" || name == ".build" || name == "bin"):
			return fs.SkipDir
		case d.Type().IsRegular():
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// repoSources parses every Go file of the tree.
func repoSources(t *testing.T) []*repoSource {
	t.Helper()
	var list []*repoSource
	for _, name := range repoFiles(t) {
		if path.Ext(name) != ".go" || strings.Contains(name, "testdata/") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(repoRoot, name))
		if err != nil {
			t.Fatal(err)
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Errorf("does not parse: %v", err)
			continue
		}
		list = append(list, &repoSource{
			path: name, text: text, fset: fset, file: file,
			test:      strings.HasSuffix(name, "_test.go") || repoIsForTests(path.Dir(name)),
			generated: ast.IsGenerated(file),
		})
	}
	if len(list) == 0 {
		t.Fatal("no Go files found")
	}
	return list
}

// repoIsForTests reports whether the package dir exists for tests: h2test, tunneltest and what lies below.
func repoIsForTests(dir string) bool { return strings.Contains(dir+"/", "test/") }

// repoMatch reports whether the package dir is meant by pattern, see repoImports.
func repoMatch(pattern, dir string) bool {
	if pattern == "..." {
		return true
	}
	if below, ok := strings.CutSuffix(pattern, "/..."); ok {
		return dir == below || strings.HasPrefix(dir, below+"/")
	}
	if parent, ok := strings.CutSuffix(pattern, "/*"); ok {
		return path.Dir(dir) == parent
	}
	return dir == pattern
}

func TestRepoImportsGoOneWay(t *testing.T) {
	for _, s := range repoSources(t) {
		if s.test {
			continue
		}
		i := slices.IndexFunc(repoImports, func(r repoImportRule) bool { return repoMatch(r.pkg, s.dir()) })
		if i < 0 {
			t.Errorf("%s: the package %s has no place in repoImports", s.path, s.dir())
			continue
		}
		for _, spec := range s.file.Imports {
			dir, ours := strings.CutPrefix(repoImportPath(spec), repoModule+"/")
			if !ours {
				continue
			}
			if repoIsForTests(dir) && !strings.HasPrefix(s.dir(), "bench") {
				t.Errorf("%s: %s is for tests only", s.at(spec.Pos()), dir)
			} else if !slices.ContainsFunc(repoImports[i].may, func(p string) bool { return repoMatch(p, dir) }) {
				t.Errorf("%s: %s may not import %s, only %q", s.at(spec.Pos()), s.dir(), dir, repoImports[i].may)
			}
		}
	}
}

func TestRepoHeavyModulesStayHome(t *testing.T) {
	for _, s := range repoSources(t) {
		if s.test || repoMatch("bench/...", s.dir()) {
			continue
		}
		for _, spec := range s.file.Imports {
			name := repoImportPath(spec)
			for _, heavy := range repoHomes {
				if name != heavy.imports && !strings.HasPrefix(name, heavy.imports+"/") {
					continue
				}
				if !slices.Contains(heavy.homes, s.dir()) {
					t.Errorf("%s: %s belongs to %q only", s.at(spec.Pos()), name, heavy.homes)
				}
				break
			}
		}
	}
}

func repoImportPath(spec *ast.ImportSpec) string {
	return strings.Trim(spec.Path.Value, "\"`")
}

// TestRepoDeps compares the modules linked into the gateway on Linux with deps.txt, so that a change shows what it
// adds to the binary.
func TestRepoDeps(t *testing.T) {
	list := exec.Command("go", "list", "-deps",
		"-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}{{end}}{{end}}", "./cmd/gateway")
	list.Dir = repoRoot
	list.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0")
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list -deps ./cmd/gateway: %v", err)
	}
	modules := strings.Fields(strings.ReplaceAll(string(out), " ", "@"))
	slices.Sort(modules)
	modules = slices.Compact(modules)
	got := "# Modules linked into the gateway. go test ./cmd/gateway -run TestRepoDeps -update\n" +
		strings.ReplaceAll(strings.Join(modules, "\n"), "@", " ") + "\n"
	if *update {
		if err := os.WriteFile("deps.txt", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("deps.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("deps.txt is not current; go test ./cmd/gateway -run TestRepoDeps -update\ngot:\n%s\nwant:\n%s", got, want)
	}
}

func TestRepoPackageNames(t *testing.T) {
	for _, s := range repoSources(t) {
		if name := s.file.Name.Name; slices.Contains(repoBannedNames, strings.TrimSuffix(name, "_test")) ||
			slices.Contains(repoBannedNames, path.Base(s.dir())) {
			t.Errorf("%s: a package called %s; name it after what it does", s.path, name)
		}
	}
}

func TestRepoFormat(t *testing.T) {
	for _, s := range repoSources(t) {
		want, err := format.Source(s.text)
		if err != nil {
			t.Errorf("%s: %v", s.path, err)
		} else if !bytes.Equal(s.text, want) {
			t.Errorf("%s: not gofmt-ed", s.path)
		}
	}
}
