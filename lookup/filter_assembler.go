package lookup

import (
	"fmt"

	"golang.org/x/net/bpf"
)

// assembler resolves forward jumps to labels.
type assembler struct {
	program []bpf.Instruction
	targets map[int]string // the jump at this index goes to this label
	labels  map[string]int
}

func (a *assembler) add(i bpf.Instruction) { a.program = append(a.program, i) }

// jump goes to the label when A fulfils the condition.
func (a *assembler) jump(cond bpf.JumpTest, val uint32, label string) {
	a.target(label)
	a.add(bpf.JumpIf{Cond: cond, Val: val})
}

// always goes to the label, however far it is.
func (a *assembler) always(label string) {
	a.target(label)
	a.add(bpf.Jump{})
}

func (a *assembler) target(label string) {
	if a.targets == nil {
		a.targets = map[int]string{}
	}
	a.targets[len(a.program)] = label
}

func (a *assembler) label(name string) {
	if a.labels == nil {
		a.labels = map[string]int{}
	}
	a.labels[name] = len(a.program)
}

func (a *assembler) assemble() ([]bpf.RawInstruction, error) {
	for at, label := range a.targets {
		to, ok := a.labels[label]
		skip := to - at - 1
		if !ok || skip < 0 {
			return nil, fmt.Errorf("filter: no label %s behind %d", label, at)
		}
		switch j := a.program[at].(type) {
		case bpf.Jump:
			j.Skip = uint32(skip)
			a.program[at] = j
		case bpf.JumpIf:
			if skip > 255 {
				return nil, fmt.Errorf("filter: the jump from %d to %s is out of reach", at, label)
			}
			j.SkipTrue = uint8(skip)
			a.program[at] = j
		}
	}
	raw, err := bpf.Assemble(a.program)
	if err != nil {
		return nil, fmt.Errorf("assemble filter: %w", err)
	}
	return raw, nil
}
