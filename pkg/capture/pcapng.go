package capture

import (
	"encoding/binary"
	"io"
	"net/netip"
)

// Blocks and options of pcapng (draft-ietf-opsawg-pcapng).
const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockNames     = 4
	blockStats     = 5
	blockPacket    = 6

	byteOrderMagic = 0x1a2b3c4d
	linkEthernet   = 1

	optUserAppl    = 4
	optName        = 2
	optDescription = 3
	optResolution  = 9
	optFlags       = 2
	optDropped     = 5
	nanoseconds    = 9

	inbound, outbound = 1, 2

	recordIPv4, recordIPv6 = 1, 2
)

// Writer writes a file of pcapng, as Wireshark and tcpdump read it. A port is an interface with its name as
// description; names of addresses are in the file, and Wireshark shows them where its preferences ask for it.
type Writer struct {
	w     io.Writer
	ports int
}

// NewWriter begins a file.
func NewWriter(w io.Writer, program string) (*Writer, error) {
	var b block
	b.u32(byteOrderMagic)
	b.u16(1)
	b.u16(0)
	b.u64(^uint64(0)) // the section's length is not known
	b.option(optUserAppl, []byte(program))
	b.end()
	return &Writer{w: w}, b.write(w, blockSection)
}

// Ports adds ports, and returns the index of the first one.
func (w *Writer) Ports(ports []Port) (first int, err error) {
	first = w.ports
	for _, p := range ports {
		var b block
		b.u16(linkEthernet)
		b.u16(0)
		b.u32(0) // no limit: each packet says how much of it is missing
		b.option(optName, []byte(p.Link))
		b.option(optDescription, []byte(p.Name))
		b.option(optResolution, []byte{nanoseconds})
		b.end()
		if err := b.write(w.w, blockInterface); err != nil {
			return first, err
		}
		w.ports++
	}
	return first, nil
}

// Packet writes a packet, whose port counts from the first one ever.
func (w *Writer) Packet(p Packet) error {
	var b block
	nanos := uint64(p.Time.UnixNano())
	b.u32(uint32(p.Port))
	b.u32(uint32(nanos >> 32))
	b.u32(uint32(nanos))
	b.u32(uint32(len(p.Data)))
	b.u32(uint32(max(p.Length, len(p.Data))))
	b.padded(p.Data)
	direction := uint32(inbound)
	if p.To {
		direction = outbound
	}
	b.option(optFlags, binary.LittleEndian.AppendUint32(nil, direction))
	b.end()
	return b.write(w.w, blockPacket)
}

// Name writes the name of an address, for all packets of the file.
func (w *Writer) Name(addr netip.Addr, name string) error {
	var b block
	kind := uint16(recordIPv6)
	if addr.Is4() {
		kind = recordIPv4
	}
	b.option(kind, append(append(addr.AsSlice(), name...), 0))
	b.end()
	b.end() // of options, of which there are none
	return b.write(w.w, blockNames)
}

// Lost writes how many packets of a port, and of those with it in one capture, were lost.
func (w *Writer) Lost(port int, at, lost uint64) error {
	var b block
	b.u32(uint32(port))
	b.u32(uint32(at >> 32))
	b.u32(uint32(at))
	b.option(optDropped, binary.LittleEndian.AppendUint64(nil, lost))
	b.end()
	return b.write(w.w, blockStats)
}

// block is the body of a block.
type block struct{ b []byte }

func (b *block) u16(v uint16) { b.b = binary.LittleEndian.AppendUint16(b.b, v) }
func (b *block) u32(v uint32) { b.b = binary.LittleEndian.AppendUint32(b.b, v) }
func (b *block) u64(v uint64) { b.b = binary.LittleEndian.AppendUint64(b.b, v) }

// padded appends data up to a multiple of four bytes.
func (b *block) padded(data []byte) {
	b.b = append(b.b, data...)
	for len(b.b)%4 != 0 {
		b.b = append(b.b, 0)
	}
}

func (b *block) option(code uint16, value []byte) {
	b.u16(code)
	b.u16(uint16(len(value)))
	b.padded(value)
}

// end ends options, or records.
func (b *block) end() { b.u32(0) }

func (b *block) write(w io.Writer, kind uint32) error {
	const around = 12 // the type, and the length before and after
	length := uint32(len(b.b) + around)
	out := binary.LittleEndian.AppendUint32(make([]byte, 0, length), kind)
	out = binary.LittleEndian.AppendUint32(out, length)
	out = append(out, b.b...)
	_, err := w.Write(binary.LittleEndian.AppendUint32(out, length))
	return err
}
