package capture_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/capture"
)

// dump reads a file block by block as the draft says, a line for each.
func dump(t *testing.T, file []byte) string {
	t.Helper()
	var lines []string
	le := binary.LittleEndian
	for len(file) > 0 {
		kind, length := le.Uint32(file), le.Uint32(file[4:])
		if length%4 != 0 || int(length) > len(file) || le.Uint32(file[length-4:]) != length {
			t.Fatalf("block %d has length %d of %d", kind, length, len(file))
		}
		body := file[8 : length-4]
		file = file[length:]
		fixed := map[uint32]int{0x0a0d0d0a: 16, 1: 8, 5: 12, 6: 20}[kind]
		text := fmt.Sprintf("%x %x", kind, body[:fixed])
		head := body[:fixed]
		body = body[fixed:]
		if kind == 6 {
			n := (le.Uint32(head[12:]) + 3) &^ 3 // the captured length, padded
			text += fmt.Sprintf(" %x", body[:n])
			body = body[n:]
		}
		for len(body) > 0 {
			code, n := le.Uint16(body), int(le.Uint16(body[2:]))
			text += fmt.Sprintf(" %d:%q", code, body[4:4+n])
			body = body[4+(n+3)&^3:]
		}
		lines = append(lines, text)
	}
	return strings.Join(lines, "\n")
}

// TestFile: the blocks of a file, with lengths, padding and the ends of options where they must be.
func TestFile(t *testing.T) {
	var b bytes.Buffer
	w, err := capture.NewWriter(&b, "weftctl")
	if err != nil {
		t.Fatal(err)
	}
	two := []capture.Port{{Name: "shop/web", Link: "web-1"}, {Name: "gateway", Link: "weft0"}}
	if first, err := w.Ports(two); err != nil || first != 0 {
		t.Fatal(first, err)
	}
	if first, err := w.Ports([]capture.Port{{Name: "tunnel", Link: "eth0"}}); err != nil || first != 2 {
		t.Fatal(first, err)
	}
	for _, err := range []error{
		w.Name(netip.MustParseAddr("10.0.0.1"), "shop/web"), w.Name(netip.MustParseAddr("fd00::1"), "node/n1"),
		w.Packet(capture.Packet{Port: 1, Time: time.Unix(5, 6), To: true, Length: 90, Data: []byte{1, 2, 3, 4, 5}}),
		w.Packet(capture.Packet{Port: 0, Time: time.Unix(5, 7), Length: 4, Data: []byte{1, 2, 3, 4}}),
		w.Lost(0, 1<<32+2, 9),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := `a0d0d0a 4d3c2b1a01000000ffffffffffffffff 4:"weftctl" 0:""
1 0100000000000000 2:"web-1" 3:"shop/web" 9:"\t" 0:""
1 0100000000000000 2:"weft0" 3:"gateway" 9:"\t" 0:""
1 0100000000000000 2:"eth0" 3:"tunnel" 9:"\t" 0:""
4  1:"\n\x00\x00\x01shop/web\x00" 0:"" 0:""
4  2:"\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01node/n1\x00" 0:"" 0:""
6 010000000100000006f2052a050000005a000000 0102030405000000 2:"\x02\x00\x00\x00" 0:""
6 000000000100000007f2052a0400000004000000 01020304 2:"\x01\x00\x00\x00" 0:""
5 000000000100000002000000 5:"\t\x00\x00\x00\x00\x00\x00\x00" 0:""`
	if got := dump(t, b.Bytes()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
