package storage

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// sealer encrypts operations. A pending one must hold what it will send, secret
// values included, and bbolt leaves old pages behind: so nothing of it is
// written in the clear, and the key is not in the file.
type sealer struct {
	key  []byte
	aead cipher.AEAD
}

const keyBytes = 32

// openKey reads the key, or makes it for a new store. A store whose key is
// gone is not given another: its operations could never be read again.
func openKey(path string, fresh bool) (*sealer, error) {
	key, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && fresh:
		key = make([]byte, keyBytes)
		rand.Read(key)
		if err := writeKey(path, key); err != nil {
			return nil, fmt.Errorf("writing the store's key: %w", err)
		}
	case err != nil:
		return nil, fmt.Errorf("reading the store's key: %w; it lies beside the store and is needed to read it", err)
	}
	if len(key) != keyBytes {
		return nil, fmt.Errorf("reading the store's key %s: it has %d bytes instead of %d; put back the right one", path, len(key), keyBytes)
	}
	if err := private(path); err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &sealer{key: key, aead: aead}, nil
}

// private is an error unless the key is for its owner only.
func private(path string) error {
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = fmt.Errorf("the store's key %s may be read by others (mode %04o): chmod 600 it", path, info.Mode().Perm())
	}
	return err
}

// writeKey makes the key durable before anything is sealed with it.
func writeKey(path string, key []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(key); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// seal binds the data to the id that it is stored under, so that one sealed
// operation cannot be put in another's place.
func (s *sealer) seal(id string, data []byte) []byte {
	return s.aead.Seal(nil, nil, data, []byte(id))
}

func (s *sealer) open(id string, sealed []byte) ([]byte, error) {
	data, err := s.aead.Open(nil, nil, sealed, []byte(id))
	if err != nil {
		return nil, errors.New("it does not open with the store's key: the key is another one, or the file was changed")
	}
	return data, nil
}

// derive makes a key for one purpose.
func (s *sealer) derive(purpose string) []byte { return s.mac("key for " + purpose) }

func (s *sealer) mac(text string) []byte {
	h := hmac.New(sha256.New, s.key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
