package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/weft-cni/weft/pkg/dnslearn"
)

// journal is the file of learned domain names, beside the copy of the objects: a line for each address, appended before
// the switch is programmed with it. Later lines replace earlier ones. It belongs to one goroutine.
type journal struct {
	file  string
	open  *os.File
	lines int // that were appended since it was rewritten
	// err is why the last writing failed.
	err error
}

// maxJournal is how many lines are appended before the file is rewritten, and maxRecords how many are read.
const maxJournal, maxRecords = 4096, 1_000_000

// read gives what the file has, up to the first line that cannot be read: an agent may have ended within it.
func (j *journal) read() (records []dnslearn.Record, err error) {
	f, err := os.Open(j.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read learned names: %w", err)
	}
	defer f.Close()
	for lines := json.NewDecoder(bufio.NewReader(f)); len(records) < maxRecords; {
		var r dnslearn.Record
		if lines.Decode(&r) != nil {
			break
		}
		records = append(records, r)
	}
	return records, nil
}

// add appends records. What cannot be written is missing after a restart, no more: tidy tries again.
func (j *journal) add(records []dnslearn.Record) {
	if len(records) == 0 || j.err != nil {
		return
	}
	if j.open == nil {
		if j.open, j.err = os.OpenFile(j.file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); j.err != nil {
			return
		}
	}
	var b []byte
	for _, r := range records {
		line, err := json.Marshal(r)
		if err != nil {
			j.err = err
			return
		}
		b = append(append(b, line...), '\n')
	}
	j.lines += len(records)
	_, j.err = j.open.Write(b)
}

// tidy rewrites the file when it has grown, or could not be written.
func (j *journal) tidy(l *dnslearn.Learner) {
	if j.err == nil && j.lines < maxJournal {
		return
	}
	next := journal{file: j.file + ".new"}
	if err := os.Remove(next.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		j.err = err
		return
	}
	for _, name := range l.Names() {
		next.add(l.Records(name))
	}
	if next.err == nil && next.open != nil {
		next.err = os.Rename(next.file, j.file)
	}
	j.close()
	if next.err != nil {
		next.close()
		j.err = next.err
		return
	}
	*j = journal{file: j.file, open: next.open}
}

func (j *journal) close() {
	if j.open != nil {
		_ = j.open.Close() // every line was written by a call of its own
		j.open = nil
	}
}
