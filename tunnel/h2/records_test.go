package h2

import (
	"net"
	"testing"
)

// crumbs is TLS whose peer puts one byte in each record.
type crumbs struct{ net.Conn }

func (crumbs) Read(p []byte) (int, error) { return copy(p, "x"), nil }

// TestRecordsOfOneByte bounds what is noted of records that are read together, which no budget knows.
func TestRecordsOfOneByte(t *testing.T) {
	in := &inbound{c: &Conn{nc: crumbs{}, gate: new(Gate)}}
	in.readOne = in.readRecord
	for range 2 {
		n, err := in.read(make([]byte, largeBuffer))
		if n == 0 || err != nil {
			t.Fatalf("read = %d, %v", n, err)
		}
		if noted := 8 * cap(in.ends); len(in.ends) != n || noted > smallBuffer {
			t.Errorf("%d bytes of memory for the ends of %d records, %d of them noted", noted, n, len(in.ends))
		}
	}
}
