package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"culvert/bench/attack"
)

func main() {
	bin := flag.String("gateway", "bin/gateway", "program to attack")
	out := flag.String("o", "", "document to write, such as docs/attacks.md")
	each := flag.Duration("for", 3*time.Second, "how long each attack lasts")
	only := flag.String("only", "", "play only attacks whose name this regular expression matches")
	flag.Parse()
	if err := run(*bin, *out, *each, *only); err != nil {
		fmt.Fprintln(os.Stderr, "attack:", err)
		os.Exit(1)
	}
}

func run(bin, out string, each time.Duration, only string) error {
	names, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "attack")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m, err := attack.NewMesh(bin, dir)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, m.Close)() // then the attack under way fails
	var page bytes.Buffer
	r := &report{to: io.MultiWriter(os.Stdout, &page)}
	r.intro(each)
	if err := r.play(m, &attack.Rush{For: each, Only: names}); err != nil {
		return err
	}
	r.end()
	if out == "" {
		return nil
	}
	return os.WriteFile(out, page.Bytes(), 0o644)
}

// play attacks an exit, one with little memory, and an entry.
func (r *report) play(m *attack.Mesh, rush *attack.Rush) error {
	exit, err := m.StartExit("256MiB")
	if err != nil {
		return err
	}
	defer exit.Stop()
	r.table("A hostile peer at an exit", "dials")
	if err := rush.Exit(exit, r.row); err != nil {
		return err
	}
	zero, err := rush.ZeroWindow(exit)
	if err != nil {
		return err
	}
	r.row(zero)
	stalled, err := rush.Stalled(exit, "1,000 stalled readers, 256 MiB of memory", 1000)
	if err != nil {
		return err
	}
	r.unbound(stalled)
	small, err := m.StartExit("64MiB")
	if err != nil {
		return err
	}
	defer small.Stop()
	if stalled, err = rush.Stalled(small, "1,000 stalled readers, 64 MiB of memory", 1000); err != nil {
		return err
	}
	r.unbound(stalled)
	entry, err := m.StartEntry()
	if err != nil {
		return err
	}
	defer entry.Stop()
	r.table("A hostile hop before an entry", "connections to the hop")
	return rush.Entry(entry, r.row)
}
