package datagram

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// RFC 9000, section 16, appendix A.1: examples of variable-length integers.
func TestVarint(t *testing.T) {
	for _, tt := range []struct {
		hex string
		v   uint64
	}{
		{"c2197c5eff14e88c", 151288809941952652}, {"9d7f3e7d", 494878333}, {"7bbd", 15293}, {"25", 37}, {"4025", 37},
	} {
		b, err := hex.DecodeString(tt.hex)
		if err != nil {
			t.Fatal(err)
		}
		if v, n := varint(append(b, 0xff)); v != tt.v || n != len(b) {
			t.Errorf("varint(%s) = %d, %d", tt.hex, v, n)
		}
		for i := range b {
			if _, n := varint(b[:i]); n != 0 {
				t.Errorf("varint of %d of %d bytes = %d", i, len(b), n)
			}
		}
	}
	for _, v := range []uint64{0, 63, 64, 16383, 16384, 1<<30 - 1, 1 << 30, 1<<62 - 1} {
		b := appendVarint(nil, v)
		if got, n := varint(b); got != v || n != len(b) || n != varintLen(v) {
			t.Errorf("varint of %d = % x, which is %d", v, b, got)
		}
	}
}

func capsule(payload string) []byte {
	return append(appendHeader(nil, len(payload)), payload...)
}

// decodeAll returns what the decoder makes of pieces.
func decodeAll(d *decoder, pieces ...[]byte) (got []string) {
	for _, b := range pieces {
		for {
			payload, rest, ok := d.next(b)
			if !ok {
				break
			}
			got = append(got, string(payload))
			b = rest
		}
	}
	return got
}

func TestDecoder(t *testing.T) {
	other := append(appendVarint(appendVarint(nil, 0x2575), 70), bytes.Repeat([]byte{1}, 70)...)
	huge := append(appendVarint(appendVarint(nil, 0), 100_000), bytes.Repeat([]byte{0}, 100_000)...)
	for _, tt := range []struct {
		name   string
		stream []byte
		want   []string
	}{
		{"one", capsule("hello"), []string{"hello"}},
		{"several", append(append(capsule("a"), capsule("")...), capsule("ccc")...), []string{"a", "", "ccc"}},
		{"long", capsule(string(make([]byte, MaxPayload))), []string{string(make([]byte, MaxPayload))}},
		{"of another type", append(other, capsule("hello")...), []string{"hello"}},
		{"of another context", append([]byte("\x00\x03\x02xy"), capsule("hello")...), []string{"hello"}},
		{"without a context", append([]byte("\x00\x00"), capsule("hello")...), []string{"hello"}},
		{"longer than a datagram", append(huge, capsule("hello")...), []string{"hello"}},
		{"in a long spelling", append([]byte("\x40\x00\x80\x00\x00\x06\x00hello"), capsule("x")...), []string{"hello", "x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, size := range []int{1, 2, 3, 7, 1000, len(tt.stream)} {
				var d decoder
				var pieces [][]byte
				for b := tt.stream; len(b) > 0; b = b[min(size, len(b)):] {
					pieces = append(pieces, b[:min(size, len(b))])
				}
				got := decodeAll(&d, pieces...)
				if len(got) != len(tt.want) {
					t.Fatalf("in pieces of %d: %d datagrams, want %d", size, len(got), len(tt.want))
				}
				for i := range got {
					if got[i] != tt.want[i] {
						t.Errorf("in pieces of %d: datagram %d has %d bytes, want %d", size, i, len(got[i]), len(tt.want[i]))
					}
				}
				if err := d.ended(); err != nil {
					t.Errorf("in pieces of %d: %v", size, err)
				}
				if cap(d.part) > 2*maxCapsule {
					t.Errorf("the decoder keeps %d bytes", cap(d.part))
				}
			}
		})
	}
	var d decoder
	if decodeAll(&d, capsule("hello")[:5]); d.ended() == nil {
		t.Error("a stream that ends inside of a capsule is well formed")
	}
}

func FuzzDecoder(f *testing.F) {
	f.Add(capsule("hello"), uint8(3))
	f.Add(append([]byte("\x40\x00\x80\x00\x00\x06\x00hello"), capsule("x")...), uint8(1))
	f.Add([]byte("\x3f\xff\xff\xff\xff\xff\xff\xff\xff"), uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		var whole, split decoder
		want := decodeAll(&whole, b)
		var pieces [][]byte
		for rest := b; len(rest) > 0; {
			n := min(max(1, int(size)), len(rest))
			pieces = append(pieces, rest[:n])
			rest = rest[n:]
		}
		got := decodeAll(&split, pieces...)
		if len(got) != len(want) || (whole.ended() == nil) != (split.ended() == nil) {
			t.Fatalf("%d datagrams in pieces, %d at once; %v and %v", len(got), len(want), split.ended(), whole.ended())
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("datagram %d differs", i)
			}
		}
	})
}
