package manifest

import (
	"fmt"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// kustomize builds the kustomization of a directory, as `kubectl kustomize` does. read, unless it is nil, is told the
// path of each file that the build asks for, also of those that do not exist.
func kustomize(dir string, read func(file string)) ([]byte, error) {
	files := reader{filesys.MakeFsOnDisk(), read}
	if read == nil {
		files.read = func(string) {}
	}
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, dir)
	if err != nil {
		return nil, fmt.Errorf("build the kustomization %s: %w", dir, err)
	}
	return built.AsYaml()
}

// reader is a file system that tells what is read.
type reader struct {
	filesys.FileSystem
	read func(file string)
}

// ReadFile returns the content of a file.
func (r reader) ReadFile(file string) ([]byte, error) {
	r.read(file)
	return r.FileSystem.ReadFile(file)
}
