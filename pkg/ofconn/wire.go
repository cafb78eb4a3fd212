package ofconn

import (
	"encoding/binary"
	"fmt"

	"github.com/weft-cni/weft/pkg/openflow"
)

// The messages of OpenFlow 1.3 (ONF TS-006) and of Nicira's extensions (nicira-ext.h) that the connection uses.
const (
	version    = 4
	headerSize = 8
	maxMessage = 1 << 16

	typeHello          = 0
	typeError          = 1
	typeEchoRequest    = 2
	typeEchoReply      = 3
	typeExperimenter   = 4
	typeSetConfig      = 9
	typePacketOut      = 13
	typeFlowMod        = 14
	typeBarrierRequest = 20
	typeBarrierReply   = 21

	nicira            = 0x00002320
	nxPacketInFormat  = 16
	nxControllerID    = 20
	nxPacketIn2       = 30
	formatPacketIn2   = 2
	propertyPacket    = 0
	propertyMetadata  = 6
	propertyUserdata  = 7
	propertyHeader    = 4
	fieldRegister1    = 0x00010204 // NXM_NX_REG1, without a mask
	noBuffer          = 0xffffffff
	anyPort           = 0xffffffff
	portController    = 0xfffffffd
	actionOutput      = 0
	instructionGoto   = 1
	commandAdd        = 0
	commandDelete     = 4 // strict
	matchOXM          = 1
	experimenterStart = 8 // of the body: vendor and subtype
)

// message is a whole message. The switch answers no transaction by its number, so all have number 0.
func message(kind byte, body []byte) []byte {
	m := make([]byte, headerSize, headerSize+len(body))
	m[0], m[1] = version, kind
	binary.BigEndian.PutUint16(m[2:], uint16(headerSize+len(body)))
	return append(m, body...)
}

func length(m []byte) int { return int(binary.BigEndian.Uint16(m[2:])) }

func hello() []byte   { return message(typeHello, nil) }
func barrier() []byte { return message(typeBarrierRequest, nil) }

func experiment(subtype uint32, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, nicira)
	b = binary.BigEndian.AppendUint32(b, subtype)
	return message(typeExperimenter, append(b, body...))
}

func setPacketInFormat() []byte {
	return experiment(nxPacketInFormat, binary.BigEndian.AppendUint32(nil, formatPacketIn2))
}

func setControllerID(id openflow.ControllerID) []byte {
	return experiment(nxControllerID, binary.BigEndian.AppendUint16(make([]byte, 6), uint16(id)))
}

// setConfig lets the switch send packets at all on a connection to its management socket: there it does so only when
// the number of bytes to send of a packet without a flow is not 0.
func setConfig() []byte { return message(typeSetConfig, []byte{0, 0, 0xff, 0xff}) }

// packetOut comes from the controller, so that a frame may also go where it came from.
func packetOut(port uint32, frame []byte) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 32+len(frame)), noBuffer)
	b = binary.BigEndian.AppendUint32(b, portController)
	b = append(b, 0, 16, 0, 0, 0, 0, 0, 0, // the length of the actions
		0, actionOutput, 0, 16)
	b = binary.BigEndian.AppendUint32(b, port)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	return message(typePacketOut, append(b, frame...))
}

func flowMod(table, to openflow.TableID, cookie uint64, priority, seconds uint16) []byte {
	command := byte(commandAdd)
	if seconds == 0 {
		command = commandDelete
	}
	b := binary.BigEndian.AppendUint64(nil, cookie)
	b = binary.BigEndian.AppendUint64(b, 0) // no mask of cookies
	b = append(b, byte(table), command, 0, 0)
	b = binary.BigEndian.AppendUint16(b, seconds)
	b = binary.BigEndian.AppendUint16(b, priority)
	b = binary.BigEndian.AppendUint32(b, noBuffer)
	b = binary.BigEndian.AppendUint32(b, anyPort)
	b = binary.BigEndian.AppendUint32(b, anyPort) // any group
	b = append(b, 0, 0, 0, 0,                     // no flags
		0, matchOXM, 0, 4, 0, 0, 0, 0) // every packet
	if seconds == 0 {
		return message(typeFlowMod, b)
	}
	return message(typeFlowMod, append(b, 0, instructionGoto, 0, 8, byte(to), 0, 0, 0))
}

// PacketIn is a packet that a flow has sent.
type PacketIn struct {
	// Data came with it, of the flow.
	Data []byte
	// Port is register 1, where Weft's pipeline has the port that the packet goes to; 0 when it is not set.
	Port uint32
	// Frame is the whole packet, from Ethernet's header on.
	Frame []byte
}

// parsePacketIn reads the body of an experimenter message; false for every other one. It copies what it returns.
func parsePacketIn(body []byte) (PacketIn, bool) {
	if len(body) < experimenterStart || binary.BigEndian.Uint32(body) != nicira ||
		binary.BigEndian.Uint32(body[4:]) != nxPacketIn2 {
		return PacketIn{}, false
	}
	var p PacketIn
	for rest := body[experimenterStart:]; len(rest) >= propertyHeader; {
		kind, size := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		if size < propertyHeader || size > len(rest) {
			return PacketIn{}, false
		}
		switch value := rest[propertyHeader:size]; kind {
		case propertyPacket:
			p.Frame = append([]byte(nil), value...)
		case propertyUserdata:
			p.Data = append([]byte(nil), value...)
		case propertyMetadata:
			p.Port = register1(value)
		}
		rest = rest[min((size+7)/8*8, len(rest)):]
	}
	return p, len(p.Frame) > 0
}

// register1 finds the register among the fields of a match.
func register1(fields []byte) uint32 {
	for len(fields) >= 4 {
		size := 4 + int(fields[3])
		if size > len(fields) {
			return 0
		}
		if binary.BigEndian.Uint32(fields) == fieldRegister1 {
			return binary.BigEndian.Uint32(fields[4:])
		}
		fields = fields[size:]
	}
	return 0
}

// RejectedError says that the switch refused a message.
type RejectedError struct{ Type, Code uint16 }

func (e *RejectedError) Error() string {
	return fmt.Sprintf("the switch rejected a message: OpenFlow 1.3 error type %d, code %d", e.Type, e.Code)
}

func rejected(body []byte) error {
	if len(body) < 4 {
		return &RejectedError{}
	}
	return &RejectedError{binary.BigEndian.Uint16(body), binary.BigEndian.Uint16(body[2:])}
}
