package workload

import (
	"bufio"
	"io"
	"path"
	"strings"
)

// libcOf tells from a process's maps which libc it uses: "musl", "glibc",
// "static" when it maps no shared library at all, "" when it cannot be told.
// The kernel names the file that a symbolic link led to: glibc before 2.34 is
// libc-2.31.so, and musl is libc.so where the loader is a link to it.
func libcOf(r io.Reader) string {
	const most = 8 << 20 // some 80,000 mappings; the kernel's default limit is 65,530
	limited := &io.LimitedReader{R: r, N: most}
	lines := bufio.NewScanner(limited)
	shared, any := false, false
	for lines.Scan() {
		any = true
		// address perms offset dev inode path; the path may have blanks.
		line := lines.Text()
		i := strings.IndexByte(line, '/')
		if i < 0 {
			continue
		}
		file := path.Base(strings.TrimSuffix(line[i:], " (deleted)"))
		switch {
		case strings.HasPrefix(file, "ld-musl-"), file == "libc.so":
			return "musl"
		case file == "libc.so.6", strings.HasPrefix(file, "libc-2.") && strings.HasSuffix(file, ".so"):
			return "glibc"
		case strings.HasSuffix(file, ".so"), strings.Contains(file, ".so."):
			shared = true
		}
	}
	if !any || shared || lines.Err() != nil || limited.N <= 0 {
		return ""
	}
	return "static"
}
