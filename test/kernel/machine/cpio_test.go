package machine

import (
	"fmt"
	"strconv"
	"testing"
)

// readCPIO reads an archive as the kernel's documentation (driver-api/early-userspace/buffer-format.rst) describes it.
func readCPIO(t *testing.T, data []byte) []string {
	t.Helper()
	var found []string
	field := func(i int) int {
		n, err := strconv.ParseUint(string(data[6+8*i:14+8*i]), 16, 32)
		if err != nil {
			t.Fatalf("field %d of %q: %v", i, data[:cpioHeaderSize], err)
		}
		return int(n)
	}
	align := func(n int) int { return (n + 3) &^ 3 }
	for {
		if len(data) < cpioHeaderSize || string(data[:6]) != "070701" {
			t.Fatalf("no header at %q", data[:min(len(data), 20)])
		}
		mode, size, nameSize := field(1), field(6), field(11)
		name := string(data[cpioHeaderSize : cpioHeaderSize+nameSize-1])
		start := align(cpioHeaderSize + nameSize)
		content := string(data[start : start+size])
		data = data[align(start+size):]
		if name == cpioTrailer {
			if len(data) != 0 {
				t.Errorf("%d bytes behind the trailer", len(data))
			}
			return found
		}
		found = append(found, fmt.Sprintf("%s %o %s", name, mode, content))
	}
}
