package ovsdb

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/weft-cni/weft/pkg/model"
)

// The part of OpenFlow 1.3 (ONF TS-006, section 7) that the state of ports needs.
const (
	ofVersion        = 4
	ofHello          = 0
	ofEchoRequest    = 2
	ofEchoReply      = 3
	ofGetConfig      = 7
	ofConfigReply    = 8
	ofSetConfig      = 9
	ofPortStatus     = 12
	ofPortMod        = 16
	ofMultipart      = 18
	ofMultipartReply = 19
	ofSetAsync       = 28

	ofMultipartPortDesc = 13
	ofPortMax           = 0xffffff00 // above are reserved numbers, such as LOCAL's
	ofHeaderLen         = 8
	ofPortLen           = 64
	ofPortDelete        = 1
	// ofMaxLen bounds a message. OpenFlow's length field has 16 bits.
	ofMaxLen = 1<<16 - 1

	ofPortDown = 1 << 0
	// ofPortBlocked is OFPPC_PORT_DOWN, NO_RECV, NO_FWD and NO_PACKET_IN.
	ofPortBlocked = ofPortDown | 1<<2 | 1<<5 | 1<<6
)

// portConfig keeps the OpenFlow configuration of the bridge's ports as the flows need it: "ovs-ofctl mod-port PORT
// down|no-forward|no-receive|no-packet-in" is undone at once, and so is "ip link set PORT down", which OVS shows in the
// same bit. The database holds none of this. PORT_STATUS tells of every change; PORT_DESC of what was before.
// One goroutine runs it and another asks; both end with its connection.
type portConfig struct {
	conn io.ReadWriter
	log  *slog.Logger
	// gone says that OVSDB has no port of a name any more: its link goes down because it is removed.
	gone func(name string) bool
	// changed is called when the switch treats fragments in another way than at the last look (set-frags).
	changed func()

	asked     bool // for the configuration, at least once
	fragments uint16
}

func ofMessage(kind byte, body []byte) []byte {
	m := make([]byte, ofHeaderLen, ofHeaderLen+len(body))
	m[0], m[1] = ofVersion, kind
	binary.BigEndian.PutUint16(m[2:], uint16(ofHeaderLen+len(body)))
	return append(m, body...)
}

// begin asks for the changes of ports and nothing else, and for the ports as they are. A management connection gets
// asynchronous messages only with a miss_send_len, which must be set without changing the flags beside it (set-frags).
func (p *portConfig) begin() error {
	async := make([]byte, 24) // masks of packet-in, port status and flow removed, each as master and as slave
	const everyReason = 7
	binary.BigEndian.PutUint32(async[8:], everyReason)
	binary.BigEndian.PutUint32(async[12:], everyReason)
	desc := make([]byte, 8)
	binary.BigEndian.PutUint16(desc, ofMultipartPortDesc)
	for _, m := range [][]byte{
		ofMessage(ofHello, nil), ofMessage(ofSetAsync, async), ofMessage(ofGetConfig, nil), ofMessage(ofMultipart, desc),
	} {
		if _, err := p.conn.Write(m); err != nil {
			return err
		}
	}
	return nil
}

// configEvery is the time between two looks at the switch's configuration: no message tells of its changes.
const configEvery = time.Second

// ask looks at the switch's configuration again and again until the context ends or the switch hangs up. It may run
// beside run.
func (p *portConfig) ask(ctx context.Context) {
	ticker := time.NewTicker(configEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if _, err := p.conn.Write(ofMessage(ofGetConfig, nil)); err != nil {
			return // run notices it, too
		}
	}
}

// run reads what the switch says until it hangs up, and repairs.
func (p *portConfig) run() error {
	var header [ofHeaderLen]byte
	buffer := make([]byte, ofMaxLen)
	for {
		if _, err := io.ReadFull(p.conn, header[:]); err != nil {
			return err
		}
		length := int(binary.BigEndian.Uint16(header[2:]))
		if length < ofHeaderLen {
			return fmt.Errorf("OpenFlow message of %d bytes", length)
		}
		body := buffer[:length-ofHeaderLen]
		if _, err := io.ReadFull(p.conn, body); err != nil {
			return err
		}
		if err := p.receive(header, body); err != nil {
			return err
		}
	}
}

func (p *portConfig) receive(header [ofHeaderLen]byte, body []byte) error {
	switch kind := header[1]; {
	case kind == ofEchoRequest:
		reply := ofMessage(ofEchoReply, body)
		copy(reply[4:8], header[4:8])
		_, err := p.conn.Write(reply)
		return err
	case kind == ofConfigReply && len(body) >= 4:
		before, asked := p.fragments, p.asked
		p.fragments, p.asked = binary.BigEndian.Uint16(body), true
		if asked {
			if p.fragments != before {
				p.changed()
			}
			return nil
		}
		config := []byte{body[0], body[1], 0, 1}
		// PORT_DESC again: a change between the first answer and now was not told.
		desc := make([]byte, 8)
		binary.BigEndian.PutUint16(desc, ofMultipartPortDesc)
		_, err := p.conn.Write(append(ofMessage(ofSetConfig, config), ofMessage(ofMultipart, desc)...))
		return err
	case kind == ofPortStatus && len(body) >= 8+ofPortLen && body[0] != ofPortDelete:
		return p.repair(body[8:])
	case kind == ofMultipartReply && len(body) >= 8 && binary.BigEndian.Uint16(body) == ofMultipartPortDesc:
		for ports := body[8:]; len(ports) >= ofPortLen; ports = ports[ofPortLen:] {
			if err := p.repair(ports); err != nil {
				return err
			}
		}
	}
	return nil
}

// repair clears what blocks a port. The gateway's link is raised by pkg/host when its addresses are set; nothing sends
// by the LOCAL port.
func (p *portConfig) repair(port []byte) error {
	number, config := binary.BigEndian.Uint32(port), binary.BigEndian.Uint32(port[32:])
	blocked := config & ofPortBlocked
	if number == model.PortGateway {
		blocked &^= ofPortDown
	}
	if blocked == 0 || number >= ofPortMax {
		return nil
	}
	name := string(port[16:32])
	for i := range name {
		if name[i] == 0 {
			name = name[:i]
			break
		}
	}
	if number >= model.PortPodMin && p.gone(name) {
		return nil
	}
	p.log.Warn("a port of the bridge was blocked (ovs-ofctl mod-port, or its link was set down); unblocking it",
		"port", name, "number", number, "config", fmt.Sprintf("%#x", config))
	mod := make([]byte, 32)
	binary.BigEndian.PutUint32(mod, number)
	copy(mod[8:14], port[8:14]) // the hardware address, which OVS compares
	binary.BigEndian.PutUint32(mod[20:], blocked)
	_, err := p.conn.Write(ofMessage(ofPortMod, mod))
	return err
}
