package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/nodestead/nodestead/certsync/host"
)

// Look finds out what is known of a daemon without making it talk to anybody.
// dockerUnit is the name of docker's unit, for StopsDocker. sd is nil where there
// is no systemd. An error says what could not be found out; the other facts hold
// nevertheless.
//
// A unit that does not run is not asked on its socket, because docker's socket
// is systemd's own, and would start what somebody has stopped.
func Look(ctx context.Context, h *host.Host, sd *host.Systemd, cfg Config, dockerUnit string) (Facts, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	f, err := lookAtUnit(ctx, sd, cfg, dockerUnit)
	if _, statErr := h.Stat(cfg.Name.socket()); statErr == nil {
		f.Present = true
	} else if !errors.Is(statErr, fs.ErrNotExist) {
		err = errors.Join(err, statErr)
	}
	switch cfg.Name {
	case Docker:
		f.CertDirs = []string{"/etc/docker/certs.d"}
	case CRIO:
		f.CertDirs = []string{"/etc/containers/certs.d"}
	}
	if err != nil || !f.Present || f.NoUnit == "" && !runs(f.Unit) {
		return f, err
	}
	f.BrokenConfig = brokenConfig(h, cfg.Name)
	f.OtherStore = otherStore(h, f.Unit.MainPID)
	if cfg.Name == Docker {
		err = lookAtDocker(ctx, h, &f)
	} else {
		err = lookAtCRI(ctx, h, cfg.Name, &f)
	}
	return f, err
}

// runs tells whether the process of a unit is there and has told that it is ready.
func runs(u host.Unit) bool { return u.Active() || u.ActiveState == "reloading" }

func lookAtUnit(ctx context.Context, sd *host.Systemd, cfg Config, dockerUnit string) (Facts, error) {
	if sd == nil {
		return Facts{NoUnit: host.ErrNoSystemd.Error()}, nil
	}
	u, err := sd.Unit(ctx, cfg.Unit)
	switch {
	case errors.Is(err, host.ErrNoUnit):
		return Facts{NoUnit: host.ErrNoUnit.Error()}, nil
	case err != nil:
		return Facts{NoUnit: err.Error()}, fmt.Errorf("ask systemd for %s: %w", cfg.Unit, err)
	}
	stops := cfg.Name != Docker && slices.Contains(u.RequiredBy, dockerUnit)
	return Facts{Present: true, Unit: u, StopsDocker: stops}, nil
}

func lookAtDocker(ctx context.Context, h *host.Host, f *Facts) error {
	api := dialDocker(h.Socket(Docker.socket()))
	defer api.close()
	info, err := api.info(ctx)
	if err != nil {
		return fmt.Errorf("ask docker for what it is: %w", err)
	}
	f.Healthy, f.Version = true, info.ServerVersion
	f.LiveRestore, f.Containers = info.LiveRestoreEnabled, info.ContainersRunning+info.ContainersPaused
	return nil
}

func lookAtCRI(ctx context.Context, h *host.Host, name Name, f *Facts) error {
	api, err := dialCRI(h.Socket(name.socket()))
	if err != nil {
		return err
	}
	defer api.close()
	state, err := api.state(ctx)
	if err != nil {
		return fmt.Errorf("ask %s for what it is: %w", name, err)
	}
	f.Healthy, f.Version, f.NoCRI = true, state.version, state.off
	switch {
	case name == CRIO:
	case state.off:
		f.CertDirsWhy = "its CRI is off, so it pulls nothing itself"
	default:
		f.CertDirs, f.CertDirsWhy = containerdCertDirs(h, state.config)
	}
	return nil
}

// containerdCertDirs takes the word of the running containerd, or else that of
// its file, which may have been changed since it started.
func containerdCertDirs(h *host.Host, info string) (dirs []string, why string) {
	configPath, ok := statusConfigPath(info)
	if !ok {
		file, err := h.ReadFile(containerdFile, maxAnswer)
		if err == nil {
			configPath, err = fileConfigPath(file)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Sprintf("%s: %v", containerdFile, err)
		}
	}
	if dirs = certDirs(configPath); len(dirs) == 0 {
		return nil, "containerd has no config_path: " + setConfigPath
	}
	return dirs, ""
}
