package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/weft-cni/weft/pkg/cni/wire"
)

// ConfListName is the file that the runtime finds in its configuration directory; the runtime takes the first by name.
const ConfListName = "10-weft.conflist"

// ConfList renders the network configuration list. It is written in CNI 1.0.0, the newest that containerd 1.6 knows;
// runtimes that read cniVersions use 1.1.0 and with it STATUS and GC. socket is mentioned only when it is not the default.
func ConfList(socket string) ([]byte, error) {
	type object = map[string]any
	weft := object{"type": "weft-cni"}
	if socket != "" && socket != wire.DefaultSocket {
		weft["socket"] = socket
	}
	list := struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions"`
		Name        string   `json:"name"`
		Plugins     []object `json:"plugins"`
	}{
		CNIVersion:  "1.0.0",
		CNIVersions: []string{"1.0.0", "1.1.0"},
		Name:        NetworkName,
		Plugins: []object{
			weft,
			{"type": "portmap", "snat": true, "capabilities": object{"portMappings": true}},
			{"type": "bandwidth", "capabilities": object{"bandwidth": true}},
		},
	}
	b, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("render the CNI configuration: %w", err)
	}
	return append(b, '\n'), nil
}

// WriteConfList puts the configuration in place: from then on the runtime sends pods to us. The agent calls it when it
// is ready to serve. The file appears complete or not at all, and is left untouched when it is right.
func WriteConfList(dir, socket string) error {
	b, err := ConfList(socket)
	if err != nil {
		return err
	}
	if _, err := replaceFile(filepath.Join(dir, ConfListName), b, 0o644); err != nil {
		return fmt.Errorf("write the CNI configuration: %w", err)
	}
	return nil
}

// InstallBinaries copies every file of a directory into the node's directory of CNI plugins and returns the names of
// those that it had to write. A binary that is the same already is left untouched; one that runs meanwhile keeps running.
func InstallBinaries(from, to string) (written []string, err error) {
	entries, err := os.ReadDir(from)
	if err != nil {
		return nil, fmt.Errorf("install CNI plugins: %w", err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return written, fmt.Errorf("install CNI plugin: %w", err)
		}
		changed, err := replaceFile(filepath.Join(to, e.Name()), b, 0o755)
		if err != nil {
			return written, fmt.Errorf("install CNI plugin: %w", err)
		}
		if changed {
			written = append(written, e.Name())
		}
	}
	return written, nil
}

// replaceFile makes a file have this content and mode, atomically, and tells whether it had to.
func replaceFile(path string, content []byte, mode fs.FileMode) (changed bool, err error) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm() == mode && info.Size() == int64(len(content)) {
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, content) {
			return false, nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	// A hidden name without an extension: runtimes read every .conflist and .conf of the directory.
	tmp, err := os.CreateTemp(filepath.Dir(path), ".weft-*")
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	_, err = tmp.Write(content)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		// The node may lose power; a half-written plugin would be there for ever.
		err = tmp.Sync()
	}
	if err := errors.Join(err, tmp.Close()); err != nil {
		return false, err
	}
	return true, os.Rename(tmp.Name(), path)
}
