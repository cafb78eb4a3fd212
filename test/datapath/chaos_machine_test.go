//go:build integration

package datapath

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/lab/labtest"
)

const (
	// machineEvery is the time between two looks at the machine.
	machineEvery = 20 * time.Millisecond
	// machineLate is how long the thread that forwards packets has to wait for a processor until its queues, of
	// net.core.rmem_default bytes, may overflow.
	machineLate = 100 * time.Millisecond
)

// machine measures how late the machine is, so that its delays are told from those of Weft: how long the thread that
// forwards packets in each userspace datapath was ready to run and did not (/proc/PID/schedstat).
type machine struct {
	files map[string]string // by node, as walled has them

	mu    sync.Mutex
	delay []delay
}

// delay is how much later a thread ran than it could have, up to a time.
type delay struct {
	at     time.Time
	amount time.Duration
}

func watchMachine(t *testing.T, files map[string]string) *machine {
	t.Helper()
	m := &machine{files: files}
	end := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		waited := map[string]time.Duration{}
		repeat(end, machineEvery, func() {
			late := time.Duration(0)
			for node, files := range m.files {
				thread, total, err := waitingTime(files)
				if err != nil {
					continue // there is no ovs-vswitchd just now
				}
				key := node + " " + thread
				if before, known := waited[key]; known {
					late = max(late, total-before)
				}
				waited[key] = total
			}
			m.mu.Lock()
			m.delay = append(m.delay, delay{time.Now(), late})
			m.mu.Unlock()
		})
	})
	t.Cleanup(func() { close(end); done.Wait() })
	return m
}

// waitingTime is how long a node's ovs-vswitchd has waited for a processor so far, in its main thread, which polls the
// ports of pods.
func waitingTime(files string) (pid string, waited time.Duration, err error) {
	data, err := os.ReadFile(files + "/run/openvswitch/ovs-vswitchd.pid")
	if err != nil {
		return "", 0, err
	}
	pid = strings.TrimSpace(string(data))
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%s/task/%[1]s/schedstat", pid))
	if err != nil {
		return "", 0, err
	}
	fields := strings.Fields(string(stat))
	if len(fields) < 2 {
		return "", 0, fmt.Errorf("%s: want three numbers", stat)
	}
	n, err := strconv.ParseInt(fields[1], 10, 64)
	return pid, time.Duration(n), err
}

// late is the longest delay since a time.
func (m *machine) late(from time.Time) (longest time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	first, _ := slices.BinarySearchFunc(m.delay, from, func(d delay, at time.Time) int { return d.at.Compare(at) })
	for _, d := range m.delay[first:] {
		longest = max(longest, d.amount)
	}
	return longest
}

// queueDrops is how many packets both nodes' kernels have dropped so far because ovs-vswitchd did not fetch them in
// time: from the packet sockets of pods' ports and of the uplink (ss(8): d in skmem), and from the tap weft0.
func (c *chaos) queueDrops() (total int) {
	for _, node := range []string{"node1", "node2"} {
		out, err := labtest.Run(c.Exec("node/"+node, "sh", "-c", "ss -0 -m; awk '/weft0:/ {print \" d\" $13}' /proc/net/dev"))
		if err != nil {
			c.t.Errorf("count the packets that the queues of %s dropped: %v", node, err)
		}
		for field := range strings.FieldsFuncSeq(out, func(r rune) bool { return strings.ContainsRune(" ,():\n", r) }) {
			if number, ok := strings.CutPrefix(field, "d"); ok {
				if n, err := strconv.Atoi(number); err == nil {
					total += n
				}
			}
		}
	}
	return total
}
