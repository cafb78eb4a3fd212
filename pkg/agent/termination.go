package agent

import (
	"errors"
	"io/fs"
	"os"
	"strings"
)

// maxTermination is what the kubelet reads of a termination message, in bytes.
const maxTermination = 4096

// WriteTermination writes why a process ends, a line each, where the kubelet reads it (kubectl describe pod, Last
// State). The kubelet has made the file; elsewhere there is none, and nothing is written.
func WriteTermination(file string, lines []string) error {
	text := strings.Join(lines, "\n")
	if file == "" || text == "" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text[:min(len(text), maxTermination)])
	return errors.Join(err, f.Close())
}

// lastWords are what the termination message says besides the error: what an agent that was not ready waited for, and
// what was wrong with the node.
func (a *Agent) lastWords() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var lines []string
	if !a.ready {
		lines = append(lines, "not ready: "+a.notReadyLocked())
	}
	return append(lines, a.problemsLocked()...)
}
