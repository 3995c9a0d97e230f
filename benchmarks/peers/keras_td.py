"""Trains the notebook's many-to-one model with Keras 3; `benchmarks.bench` measures the whole process."""

import os

import numpy as np


def main() -> None:
    os.environ['KERAS_BACKEND'] = 'jax'  # read when Keras is imported
    from keras.layers import LSTM, Dense, Input
    from keras.models import Sequential

    sequence = (np.arange(5) / 5).reshape(1, 5, 1)
    model = Sequential([Input((5, 1)), LSTM(5), Dense(5)])
    model.compile(loss='mean_squared_error', optimizer='adam')
    model.summary()
    model.fit(sequence, sequence.reshape(1, 5), epochs=500, batch_size=1, verbose=2)
    print(model.predict(sequence, verbose=0).round(1))


if __name__ == '__main__':
    main()
