package deploy

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the files that tests compare with")

// patience bounds everything that a test waits for; it is long, as the machine may be busy.
const patience = time.Minute

// buildDir is where gateway builds the program; TestMain removes it.
var buildDir string

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if buildDir, err = os.MkdirTemp("", "culvert-deploy-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := os.Chmod(buildDir, 0o755); err != nil { // also users without rights start the program
		fmt.Fprintln(os.Stderr, err)
	}
	code := m.Run()
	_ = os.RemoveAll(buildDir) // a folder of ours
	os.Exit(code)
}

// buildOnce builds the program as the Dockerfile does.
var buildOnce = sync.OnceValues(func() (string, error) {
	text, err := os.ReadFile("Dockerfile")
	if err != nil {
		return "", err
	}
	for _, step := range dockerSteps(string(text)) {
		if step.word != "RUN" || !strings.Contains(step.rest, "go build") {
			continue
		}
		out := filepath.Join(buildDir, "gateway")
		cmd := exec.Command("sh", "-c", strings.Replace(step.rest, "/out/gateway", out, 1))
		cmd.Dir = ".."
		said, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w\n%s", step.rest, err, said)
		}
		return out, err
	}
	return "", fmt.Errorf("the Dockerfile builds nothing")
})

// built returns the path of the program.
func built(t *testing.T) string {
	t.Helper()
	path, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// program returns the path of a foreign program, which `make setup` installs.
func program(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("CULVERT_TOOLS")), filepath.SplitList(os.Getenv("PATH"))...) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path := filepath.Join(dir, name); exec.Command("test", "-x", path).Run() == nil {
			return path
		}
	}
	t.Fatalf("%s is missing; run make setup", name)
	return ""
}

// run runs a program, which must succeed, and returns what it prints.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return out
}

// try is run for programs that may fail.
func try(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// needRoot is for tests that make namespaces.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces take root")
	}
}

// read returns the text of a file of this folder.
func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// write makes a file and returns its path.
func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// find lists the files below this folder whose names end so.
func find(t *testing.T, endings ...string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		for _, ending := range endings {
			if err == nil && !d.IsDir() && strings.HasSuffix(path, ending) && !strings.HasPrefix(path, "testdata") {
				files = append(files, path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// up waits until something listens at address.
func up(t *testing.T, address string) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		nc, err := net.Dial("tcp", address)
		if err == nil {
			_ = nc.Close()
			return
		}
	}
	t.Fatalf("nothing listens at %s", address)
}
