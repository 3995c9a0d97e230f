"""Times a single many-to-many run as a whole process beside the same training as a Keras 3 script.

    .venv/bin/python docs/start_beside_keras.py [ROUNDS]

The three processes take turns, and the medians of all rounds but the first are compared: the first fills the
compilation cache. Keras runs on its JAX backend, with the training of the notebook's third experiment.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

KERAS = """
import numpy as np
from keras.layers import LSTM, Dense, Input, TimeDistributed
from keras.models import Sequential

sequence = (np.arange(5) / 5).reshape(1, 5, 1)
model = Sequential([Input((5, 1)), LSTM(5, return_sequences=True), TimeDistributed(Dense(1))])
model.compile(loss='mean_squared_error', optimizer='adam')
model.summary()
model.fit(sequence, sequence, epochs=1000, batch_size=1, verbose=2)
print(model.predict(sequence, verbose=0).round(1))
"""


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as folder:
        ours = [sys.executable, '-m', 'experiments.td', '--setup=many_to_many', f'--workdir={folder}', '--overwrite']
        commands = {
            'Keras 3': [sys.executable, '-c', KERAS],
            'seqjax, --nopicture': [*ours, '--nopicture'],
            'seqjax, with the picture': ours,
        }
        seconds = {name: [] for name in commands}
        for _ in range(rounds + 1):
            for name, command in commands.items():
                start = time.perf_counter()
                environment = os.environ | {'KERAS_BACKEND': 'jax'}
                subprocess.run(command, check=True, capture_output=True, env=environment)
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    for name, median in medians.items():
        low, high = min(seconds[name][1:]), max(seconds[name][1:])
        print(f'{name:26}{median:6.2f} s ({low:.2f} to {high:.2f}){medians["Keras 3"] / median:6.1f} times')


if __name__ == '__main__':
    main()
