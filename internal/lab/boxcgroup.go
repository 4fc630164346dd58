package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where a machine mounts its cgroup hierarchies.
const cgroupRoot = "/sys/fs/cgroup"

// cgroupsFile is the file in a lab's directory that lists the cgroups of its
// boxes, one path on each line.
const cgroupsFile = "cgroups"

// hierarchy is a cgroup hierarchy that the machine has mounted.
type hierarchy struct {
	name    string // of its directory under cgroupRoot; "." is that itself
	options string // to mount it, "" for version 2
	path    string // the cgroup under which that of a box is made
}

// hierarchies reads what /proc/self/cgroup says. A box is given all that its
// machine has: containers need the controllers, systemd one of the hierarchies.
func hierarchies(self string) ([]hierarchy, error) {
	var all []hierarchy
	for line := range strings.Lines(self) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			return nil, fmt.Errorf("no line of /proc/self/cgroup: %q", line)
		}
		h := hierarchy{name: fields[1], options: fields[1], path: fields[2]}
		switch name, named := strings.CutPrefix(fields[1], "name="); {
		case fields[1] == "":
			h.name = "unified"
		case named:
			h.name, h.options = name, "none,"+fields[1]
		}
		all = append(all, h)
	}
	if len(all) == 1 && all[0].name == "unified" {
		// Only the root may have both processes and cgroups with controllers.
		return []hierarchy{{name: ".", path: "/"}}, nil
	}
	return all, nil
}

// cgroup is the path of the cgroup name in this hierarchy.
func (h hierarchy) cgroup(name string) string {
	return filepath.Join(cgroupRoot, h.name, h.path, name)
}

// addCgroups makes a cgroup in each hierarchy, after it has recorded them, and
// returns their paths, also when it could not make all.
func (l *Lab) addCgroups(name string, all []hierarchy) ([]string, error) {
	var paths []string
	for _, h := range all {
		paths = append(paths, h.cgroup(name))
	}
	record, err := os.OpenFile(filepath.Join(l.dir, cgroupsFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintln(record, strings.Join(paths, "\n"))
	if err = errors.Join(err, record.Close()); err != nil {
		return nil, fmt.Errorf("record cgroups: %w", err)
	}
	for _, path := range paths {
		if err := addCgroup(path); err != nil {
			return paths, err
		}
	}
	return paths, nil
}

func addCgroup(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	// A new cpuset of version 1 has neither processors nor memory, and so takes
	// no process.
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(path), file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(path, file), b, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// removeCgroups removes cgroups with what is in them. Their processes have been
// killed; the kernel needs some time until they are empty.
func removeCgroups(paths []string) error {
	var errs []error
	for _, path := range paths {
		err := poll(func() (bool, error) {
			err := removeCgroup(path)
			if errors.Is(err, unix.EBUSY) {
				return false, nil
			}
			return true, err
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup, the inner ones first. Its files go with it.
func removeCgroup(path string) error {
	var dirs []string
	err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return ignoreMissing(err)
	})
	for _, dir := range slices.Backward(dirs) {
		err = errors.Join(err, ignoreMissing(os.Remove(dir)))
	}
	return err
}

// ignoreMissing is err, or nil when err says that there is no such file.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
