package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	datagramBytes = 1200
	burst         = 50 // datagrams that the system splits one write into
	parallel      = 64 // connections that are opened at once
)

// server serves until ctx ends: bytes on port 9000, as many as the first eight ask for, or an echo for 0; on 9001 it
// counts datagrams, and on 9002 it tells how many came since it was asked last.
func server(ctx context.Context) error {
	ln, err := net.Listen("tcp", serverTCP)
	if err != nil {
		return err
	}
	pc, err := net.ListenPacket("udp", serverUDP)
	if err != nil {
		return err
	}
	_ = pc.(*net.UDPConn).SetReadBuffer(16 << 20) // what the system allows
	counts, err := net.Listen("tcp", serverCount)
	if err != nil {
		return err
	}
	var n atomic.Int64
	go countLoop(pc.(*net.UDPConn), &n)                                      // ends with the process
	go acceptLoop(counts, func(nc net.Conn) { fmt.Fprintln(nc, n.Swap(0)) }) // as above
	go acceptLoop(ln, serveBytes)                                            // as above
	<-ctx.Done()
	return nil
}

func countLoop(pc *net.UDPConn, n *atomic.Int64) {
	raw, err := pc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) }) // else they come one by one
	buf, oob := make([]byte, 64<<10), make([]byte, 64)
	for {
		got, _, _, _, err := pc.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return
		}
		n.Add(int64((got + datagramBytes - 1) / datagramBytes))
	}
}

func acceptLoop(ln net.Listener, serve func(net.Conn)) {
	for {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		go func() { // ends with its connection
			defer nc.Close()
			serve(nc)
		}()
	}
}

func serveBytes(nc net.Conn) {
	var head [8]byte
	if _, err := io.ReadFull(nc, head[:]); err != nil {
		return
	}
	n := binary.BigEndian.Uint64(head[:])
	if n == 0 {
		echo(nc)
		return
	}
	buf := make([]byte, 256<<10)
	for n > 0 {
		m, err := nc.Write(buf[:min(n, uint64(len(buf)))])
		if err != nil {
			return
		}
		n -= uint64(m)
	}
}

// echo says back what it hears. io.Copy would hold a pipe, two more files, for each connection.
func echo(nc net.Conn) {
	buf := make([]byte, 64)
	for {
		n, err := nc.Read(buf)
		if err != nil {
			return
		}
		if _, err := nc.Write(buf[:n]); err != nil {
			return
		}
	}
}

// client does what in says, and answers each line with one of JSON, or "error" and why.
func client(in io.Reader, out io.Writer) error {
	c := &worker{}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		answer, err := c.do(strings.Fields(lines.Text()))
		if err != nil {
			fmt.Fprintln(out, "error", err)
			continue
		}
		if err := json.NewEncoder(out).Encode(answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

type worker struct{ held []net.Conn }

func (c *worker) do(words []string) (any, error) {
	number := func(i int) int {
		n, _ := strconv.Atoi(words[i]) // this program has written it
		return n
	}
	switch words[0] {
	case "down":
		return down(words[1], number(2))
	case "hold":
		return c.hold(words[1], number(2))
	case "release":
		for _, nc := range c.held {
			_ = nc.Close()
		}
		c.held = nil
		return nil, nil
	case "udp":
		return send(words[1], number(2), number(3))
	case "counted":
		return counted(words[1])
	}
	return nil, fmt.Errorf("%q is nothing to do", words)
}

// down draws n bytes and returns the seconds that took.
func down(addr string, n int) (float64, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	start := time.Now()
	if _, err := nc.Write(binary.BigEndian.AppendUint64(nil, uint64(n))); err != nil {
		return 0, err
	}
	buf := make([]byte, 256<<10)
	for left := n; left > 0; {
		m, err := nc.Read(buf)
		if err != nil {
			return 0, fmt.Errorf("%d bytes are missing: %w", left, err)
		}
		left -= m
	}
	return time.Since(start).Seconds(), nil
}

// hold opens n connections, each with a byte there and back, and keeps them.
func (c *worker) hold(addr string, n int) (any, error) {
	var failed atomic.Int64
	var mu sync.Mutex
	var group sync.WaitGroup
	slots := make(chan struct{}, parallel)
	start := time.Now()
	for range n {
		slots <- struct{}{}
		group.Go(func() { // ends with its exchange
			defer func() { <-slots }()
			nc, err := open(addr)
			if err != nil {
				if failed.Add(1) < 5 {
					fmt.Fprintln(os.Stderr, err)
				}
				return
			}
			mu.Lock()
			c.held = append(c.held, nc)
			mu.Unlock()
		})
	}
	group.Wait()
	return map[string]float64{"Seconds": time.Since(start).Seconds(), "Errors": float64(failed.Load())}, nil
}

func open(addr string) (net.Conn, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second)) // a socket that is open takes it
	var b [1]byte
	if _, err = nc.Write(make([]byte, 9)); err == nil {
		_, err = io.ReadFull(nc, b[:])
	}
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	return nc, nil
}

// send sends bursts of datagrams for so many seconds, rate datagrams a second, or as many as the system takes.
func send(addr string, rate, seconds int) (any, error) {
	nc, err := net.Dial("udp", addr)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	raw, err := nc.(*net.UDPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, datagramBytes) }); cerr != nil || err != nil {
		return nil, fmt.Errorf("UDP_SEGMENT: %w", err)
	}
	buf := make([]byte, burst*datagramBytes)
	sent, start := 0, time.Now()
	for {
		passed := time.Since(start)
		if passed >= time.Duration(seconds)*time.Second {
			break
		}
		if rate > 0 && float64(sent) > passed.Seconds()*float64(rate) {
			time.Sleep(50 * time.Microsecond)
			continue
		}
		if _, err := nc.Write(buf); err == nil {
			sent += burst
		}
	}
	return map[string]float64{"Sent": float64(sent), "Seconds": time.Since(start).Seconds()}, nil
}

func counted(addr string) (float64, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	text, err := io.ReadAll(nc)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
}
