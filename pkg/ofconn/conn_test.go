package ofconn

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"testing"
)

// packetIn is a message NXT_PACKET_IN2 as Open vSwitch 3.1 sends it: packet, table, cookie, reason, metadata with reg0,
// reg1 and ct_state, userdata.
func packetIn(frame string, port byte, data string) []byte {
	property := func(kind byte, value []byte) []byte {
		p := append([]byte{0, kind, 0, byte(4 + len(value))}, value...)
		return append(p, make([]byte, (8-len(p)%8)%8)...)
	}
	body := []byte{0, 0, 0x23, 0x20, 0, 0, 0, nxPacketIn2}
	body = append(body, property(propertyPacket, []byte(frame))...)
	body = append(body, property(3, []byte{93})...)
	body = append(body, property(4, []byte{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8})...)
	body = append(body, property(propertyMetadata, []byte{0x80, 0, 0, 4, 0, 0, 0, 9,
		0, 1, 0, 4, 0, 0, 0, 2, 0, 1, 2, 4, 0, 0, 0, port})...)
	body = append(body, property(propertyUserdata, []byte(data))...)
	return message(typeExperimenter, body)
}

// TestConn: the connection asks for packets, reads them in whatever pieces they come, answers the switch's probes, and
// goes on after an error that is about one message.
func TestConn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	asked := make(chan []byte, 20)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := reader{from: conn}
		take := func() {
			kind, body, err := r.next()
			if err == nil {
				asked <- append([]byte{kind}, body...)
			}
		}
		take()
		_, _ = conn.Write(append(message(typeHello, []byte{0, 1, 0, 8, 0, 0, 0, 0x7e}), message(typeEchoRequest, nil)...))
		for range 4 {
			take()
		}
		all := slices.Concat(message(typeBarrierReply, nil), message(typeEchoRequest, []byte("x")),
			packetIn("first", 7, "A"), message(typeError, []byte{0, 2, 0, 4}), packetIn("second", 8, "Q"))
		for _, b := range all {
			_, _ = conn.Write([]byte{b})
		}
		for range 4 {
			take()
		}
	}()
	c, err := Dial(t.Context(), path, 0x5765)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := func(port uint32, data, frame string) {
		t.Helper()
		p, err := c.Next()
		if err != nil || p.Port != port || string(p.Data) != data || string(p.Frame) != frame {
			t.Errorf("got %+v, %v", p, err)
		}
	}
	want(7, "A", "first")
	var rejected *RejectedError
	if _, err := c.Next(); !errors.As(err, &rejected) || rejected.Type != 2 || rejected.Code != 4 {
		t.Errorf("got the error %v", err)
	}
	want(8, "Q", "second")
	if err := errors.Join(c.Output(7, []byte("frame")), c.Lead(92, 93, 0x5765, 100, 3), c.Lead(92, 93, 0x5765, 100, 0)); err != nil {
		t.Fatal(err)
	}
	// A packet-out from the controller to port 7; a flow in table 92 that leads to 93 for 3 seconds; its deletion.
	for _, text := range []string{
		"00", "0400002320" + "00000010" + "00000002", "0400002320" + "00000014" + "0000000000005765", "090000ffff", "14",
		"0378", "0dfffffffffffffffd0010000000000000" + "0000001000000007" + "0000000000000000" + hex.EncodeToString([]byte("frame")),
		"0e" + "0000000000005765" + "0000000000000000" + "5c00" + "0000" + "0003" + "0064" + "ffffffff" + "ffffffff" + "ffffffff" +
			"00000000" + "0001000400000000" + "000100085d000000",
		"0e" + "0000000000005765" + "0000000000000000" + "5c04" + "0000" + "0000" + "0064" + "ffffffff" + "ffffffff" + "ffffffff" +
			"00000000" + "0001000400000000",
	} {
		wanted, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := <-asked; !bytes.Equal(got, wanted) {
			t.Errorf("sent %x, want %x", got, wanted)
		}
	}
	if _, err := c.Next(); err == nil || errors.As(err, &rejected) {
		t.Errorf("after the switch has closed the connection: %v", err)
	}
}

// FuzzMessages: no message makes the reader panic.
func FuzzMessages(f *testing.F) {
	f.Add(packetIn("frame", 7, "A"))
	f.Add(message(typeError, nil))
	f.Fuzz(func(_ *testing.T, b []byte) {
		r := reader{from: bytes.NewReader(b)}
		for {
			_, body, err := r.next()
			if err != nil {
				return
			}
			parsePacketIn(body)
			_ = rejected(body)
		}
	})
}
